"""The commands that show what became of runs: `report`, `tensorboard`, `compare`; and `settings`, what a run may be told."""

import os
from pathlib import Path
from typing import Annotated

import typer

from trainer.cli.options import JsonOption, NameArgument
from trainer.cli.run import report_of
from trainer.streams import answer, say, tell


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


def report(run: NameArgument) -> None:
    """Say what came of a run: losses beside the baselines, a sample, and where everything lies."""
    from trainer.config.folders import find_run
    from trainer.config.load import load_resolved

    folder = find_run(run)
    answer(report_of(load_resolved(folder / "config.yaml"), folder))
