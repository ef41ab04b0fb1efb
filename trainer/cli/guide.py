"""The command `guide`: the pages of trainer/guides, read in the terminal."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from trainer.errors import ConfigError
from trainer.streams import answer

FOLDER = Path(__file__).resolve().parent.parent / "guides"
"""One Markdown file a page: a title, an empty line, and one line that says what the page is about."""

PAGES = (
    *(
        "run",
        "scaling",
        "cluster",
        "data",
        "models",
        "hub",
        "unattended",
        "alerts",
        "slurm",
        "checkpoints",
        "precision",
        "monitoring",
        "evaluation",
        "compare",
        "selftest",
    ),
    *("settings", "contributing"),
)
"""The pages in the order in which one reads them."""


def guide(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]")] = None,
    systemd: Annotated[
        bool, typer.Option("--systemd", help="Print a unit for systemd, which starts a run again after a reboot.")
    ] = False,
    script: Annotated[bool, typer.Option("--script", help="Print a script for sbatch, of Slurm.")] = False,
) -> None:
    """Show a guide; without NAME, list them."""
    if systemd or script:
        file = "trainer.service" if systemd else "run.sbatch"
        answer((FOLDER / file).read_text(encoding="utf-8").rstrip("\n"))
    elif name is None:
        answer(_contents())
    elif name in PAGES:
        _show(_text(name))
    else:
        raise ConfigError(_unknown(name))


def _text(name: str) -> str:
    return (FOLDER / f"{name}.md").read_text(encoding="utf-8")


def _contents() -> str:
    from trainer.config.folders import command_line
    from trainer.text import table

    rows = [(name, _text(name).splitlines()[2]) for name in PAGES]
    return f"{table(rows)}\n\nTo read one: {command_line('guide', PAGES[0])}"


def _unknown(name: str) -> str:
    """What to read instead: the page with a name like this, else those that use the word most."""
    from trainer.config.folders import command_line
    from trainer.text import nearest

    uses = {page: _text(page).lower().count(name.lower()) for page in PAGES if name}
    close = nearest(name, PAGES) or sorted(filter(uses.get, uses), key=uses.__getitem__, reverse=True)[:3]
    names = [close] if isinstance(close, str) else close
    meant = f"see {' or '.join(command_line('guide', page) for page in names)}; " if names else ""
    return f"there is no guide {name!r}; {meant}all are listed by: {command_line('guide')}"


def _show(page: str) -> None:
    """Sets the page for a terminal; to anything else it goes as it is written."""
    if not sys.stdout.isatty():
        answer(page.rstrip("\n"))
        return
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console(file=sys.stdout)
    console.print(Markdown(page), width=min(console.width, 110))
