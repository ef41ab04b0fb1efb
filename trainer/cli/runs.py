"""The commands of `trainer runs`: they look after whole runs, and load no torch."""

from typing import Annotated

import typer

from trainer.cli.options import NameArgument
from trainer.streams import tell

runs_app = typer.Typer(no_args_is_help=True, help="Remove or rename whole runs.")


@runs_app.command()
def rm(
    run: NameArgument, yes: Annotated[bool, typer.Option("--yes", help="You are sure: it goes for good.")] = False
) -> None:
    """Remove a run: its folder in runs/ and its checkpoints. Not while it is trained, nor with a pinned checkpoint."""
    from trainer.runs import remove

    tell(remove(run, is_sure=yes))


@runs_app.command()
def mv(run: NameArgument, name: Annotated[str, typer.Argument(metavar="NAME", help="The new name.")]) -> None:
    """Rename a run: its folder in runs/, its checkpoints and its settings. Not while it is trained."""
    from trainer.runs import rename

    tell(rename(run, name))
