"""The commands of `trainer checkpoints`: they look at a run's checkpoints and look after them, and load no torch."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from trainer.streams import answer, tell

checkpoints_app = typer.Typer(no_args_is_help=True, help="Look at a run's checkpoints, and look after them.")

RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's name or folder, its folder of checkpoints, or one checkpoint's.")
]

StepArgument = Annotated[
    str, typer.Argument(metavar="STEP", help="A step, latest, best, or the path of a checkpoint.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="For programs.")]


@checkpoints_app.command()
def ls(run: RunArgument, as_json: JsonOption = False) -> None:
    """List a run's checkpoints, newest first: step, age, why it is kept, losses, bytes, sound?"""
    from trainer.checkpoint.listing import listing
    from trainer.config.folders import find_checkpoints

    answer(listing(find_checkpoints(run), as_json=as_json))


@checkpoints_app.command()
def show(
    run: RunArgument,
    checkpoint: Annotated[str, typer.Option(help="latest, best, a step, or the path of a checkpoint.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Show everything that a checkpoint's manifest says."""
    from trainer.checkpoint.show import show as show_one
    from trainer.config.folders import find_checkpoints

    folder = find_checkpoints(run)
    own = str(folder) if (folder / "manifest.json").is_file() else "latest"
    answer(show_one(folder, checkpoint or own, as_json=as_json))


@checkpoints_app.command()
def verify(run: RunArgument) -> None:
    """Read every byte of a run's checkpoints and compare it with the manifests; exit code 1 when one is not sound."""
    from trainer.checkpoint.listing import verification
    from trainer.config.folders import find_checkpoints

    text, all_sound = verification(find_checkpoints(run))
    tell(text)
    sys.exit(0 if all_sound else 1)


@checkpoints_app.command()
def diff(
    run: RunArgument,
    a: Annotated[str, typer.Argument(metavar="A", help="A step, latest, best, or the path of a checkpoint.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The other one.")],
    as_json: JsonOption = False,
) -> None:
    """Say what differs between two checkpoints: facts, settings, files, and which tensors of the model."""
    from trainer.checkpoint.show import diff as diff_two
    from trainer.config.folders import find_checkpoints

    answer(diff_two(find_checkpoints(run), a, b, as_json=as_json))


@checkpoints_app.command()
def pin(run: RunArgument, step: StepArgument) -> None:
    """Keep a checkpoint whatever the tiers say; may be done while the run trains."""
    from trainer.checkpoint.pin import set_pinned
    from trainer.config.folders import find_checkpoints

    tell(set_pinned(find_checkpoints(run), step, pinned=True))


@checkpoints_app.command()
def unpin(run: RunArgument, step: StepArgument) -> None:
    """Take a pin away: the tiers decide again."""
    from trainer.checkpoint.pin import set_pinned
    from trainer.config.folders import find_checkpoints

    tell(set_pinned(find_checkpoints(run), step, pinned=False))


@checkpoints_app.command()
def prune(
    run: RunArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go and why, and stop.")] = False,
    keep_last: Annotated[int | None, typer.Option(min=1, help="Instead of the settings' checkpoint.keep_last, this once.")] = None,
    keep_best: Annotated[int | None, typer.Option(min=0, help="The same for keep_best.")] = None,
    keep_every_steps: Annotated[int | None, typer.Option(min=1, help="The same for keep_every_steps.")] = None,
    keep_epochs: Annotated[int | None, typer.Option(min=0, help="The same for keep_epochs.")] = None,
    max_disk_bytes: Annotated[float | None, typer.Option(min=1, help="The same for max_disk_bytes; may be written 5e9.")] = None,
) -> None:
    """Remove what the newest checkpoint's settings, or these rules in their place, do not keep, as a run does after every commit."""
    from trainer.checkpoint.listing import pruning
    from trainer.config.folders import find_checkpoints

    given = {
        "keep_last": keep_last, "keep_best": keep_best, "keep_every_steps": keep_every_steps, "keep_epochs": keep_epochs,
        "max_disk_bytes": max_disk_bytes,
    }  # fmt: skip
    rules = {name: int(value) for name, value in given.items() if value is not None}
    tell(pruning(find_checkpoints(run), dry_run=dry_run, rules=rules))


@checkpoints_app.command()
def rm(
    run: RunArgument,
    checkpoint: Annotated[str, typer.Option(metavar="STEP", help="A step, latest, best, or the name of one that was set aside, as ls shows it.")],
) -> None:
    """Remove one checkpoint; not a pinned one, nor the last, nor while the run is trained."""
    from trainer.checkpoint.remove import remove
    from trainer.config.folders import find_checkpoints

    tell(remove(find_checkpoints(run), checkpoint))


@checkpoints_app.command()
def copy(
    run: RunArgument,
    step: StepArgument,
    target: Annotated[Path, typer.Argument(metavar="DEST", help="The folder that gets step-*: on another disk.")],
) -> None:
    """Copy a checkpoint to another folder, read every byte back, and only then give it its name."""
    from trainer.checkpoint.duplicate import duplicate
    from trainer.config.folders import find_checkpoints

    tell(duplicate(find_checkpoints(run), step, target))


@checkpoints_app.command()
def fetch(
    run: Annotated[
        str,
        typer.Argument(metavar="RUN|PLACE", help="A run with checkpoint.second_place, or its folder there: a path, or a URL that fsspec opens."),
    ],
    step: Annotated[str, typer.Argument(metavar="[STEP]", help="A step, latest or best; without it, what is there is listed.")] = "",
    to: Annotated[
        str, typer.Option(metavar="RUN|FOLDER", help="Where it goes; by default to RUN, or the run that the last part of PLACE names.")
    ] = "",
) -> None:
    """Bring a checkpoint back from a second place, every byte verified; without STEP, list what is there."""
    from trainer.checkpoint import fetch as fetching
    from trainer.config.folders import config_of, home_of_checkpoints

    run = run.rstrip("/")
    config = config_of(run)
    where = fetching.place_of(config) if config else run
    if not step:
        answer(fetching.offered(where))
        return
    home = run if config else run.rpartition("/")[2]
    tell(fetching.fetch(where, step, home_of_checkpoints(to or home)))
