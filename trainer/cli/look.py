"""The commands that show how runs stand and what became of them: `status`, `report`, `tensorboard`, `compare`; and `settings`."""

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from trainer.cli.options import JsonOption, NameArgument
from trainer.cli.run import report_of
from trainer.streams import answer, say, tell

WATCH_SECONDS = 2.0
"""How often a watched run is looked at."""


def status(
    run: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help="A run's name, or its folder in runs/; all of runs/ without it."),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on showing it until Ctrl+C.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say how runs stand: alive or not, step, speed, time left, last save, what could be lost, the disk, what happened last."""
    from trainer.config.folders import find_run
    from trainer.files import project_folder
    from trainer.history.screen import as_json as line_of
    from trainer.history.screen import listing, screen
    from trainer.history.standing import present, standing_of, standings

    folder = find_run(run) if run else None

    def look() -> str:
        now, width = present(), shutil.get_terminal_size((160, 24)).columns
        found = [standing_of(folder, now)] if folder else standings(project_folder() / "runs", now)
        if as_json:
            return "\n".join(map(line_of, found))
        if not found:
            return f"{project_folder() / 'runs'} has no run: nothing was trained here yet"
        return screen(found[0], now, width) if folder else listing(found, width)

    try:
        _watch(look, is_for_programs=as_json) if watch else answer(look())
    except KeyboardInterrupt:
        sys.exit(0)


def _watch(look: Callable[[], str], *, is_for_programs: bool) -> None:
    """Shows what is seen again and again: in its place on a terminal, else one after another."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console()
    if is_for_programs or not console.is_terminal:
        while True:
            answer(look())
            time.sleep(WATCH_SECONDS)
    try:
        with Live(Text(look(), no_wrap=True), console=console, auto_refresh=False, screen=True) as live:
            while True:
                time.sleep(WATCH_SECONDS)
                live.update(Text(look(), no_wrap=True), refresh=True)
    except KeyboardInterrupt:
        answer(look())  # it stays on the terminal, which is as it was before


def tensorboard(
    run: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help="A run's name, or any folder of runs; all of runs/ without it."),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Its port; the first free one from 6006 by default.")
    ] = None,
) -> None:
    """Open TensorBoard on a free port, and say how to reach it from another machine."""
    from trainer.config.folders import find_run
    from trainer.files import project_folder
    from trainer.tensorboard import board, show

    if run is None:
        folder = project_folder() / "runs"
    else:
        folder = Path(run) if Path(run).is_dir() else find_run(run)
    opened = board(folder, port, os.environ)
    say(opened.hint)
    show(opened)


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="A B [...]", help="Runs by name, or their folders in runs/; all are compared with A."),
    ],
    html: Annotated[
        Path | None,
        typer.Option(help="Write a page with plots here as well: a file, or a folder for compare-A-B.html."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say whether runs are as good as the first, and how sure that is: losses by tokens and by time, speed, what differs."""
    from trainer.tools.compare.judge import judge
    from trainer.tools.compare.runs import read_runs
    from trainer.tools.compare.show import text, to_json

    comparison = judge(read_runs(runs))
    answer(to_json(comparison) if as_json else text(comparison))
    if html:
        from trainer.tools.compare.page import write_page

        (say if as_json else tell)(f"\nplots: {write_page(comparison, html)}")


def settings() -> None:
    """Print every setting with its default and its meaning, as a Markdown table."""
    from trainer.config.settings import settings_table

    answer(settings_table())


def report(
    run: NameArgument,
    html: Annotated[
        Path | None, typer.Option(help="Write a page with plots here as well: a file, or a folder for report-RUN.html.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what came of a run and what happened on the way: losses, effective training time, stops, resumes, where everything lies."""
    from trainer.config.folders import find_run
    from trainer.config.load import load_resolved
    from trainer.history.account import account_of, text, to_json

    folder = find_run(run)
    account = account_of(folder)
    if as_json:
        answer(to_json(account))
    else:
        width = shutil.get_terminal_size((100, 24)).columns
        answer(report_of(load_resolved(folder / "config.yaml"), folder, happened=text(account, width)))
    if html:
        from trainer.history.page import write_page

        (say if as_json else tell)(f"\nplots: {write_page(account, html)}")
