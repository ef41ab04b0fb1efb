"""The commands of `trainer checkpoints`: they look at a run's checkpoints and look after them, and load no torch."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from trainer.cli.options import CheckpointOption, JsonOption, RunArgument
from trainer.errors import ConfigError
from trainer.streams import answer, tell

checkpoints_app = typer.Typer(
    no_args_is_help=True, help="List, verify, compare, keep, remove, copy and fetch a run's checkpoints."
)

StepAlias = Annotated[str, typer.Argument(metavar="[STEP]", hidden=True)]
"""The form of earlier versions: a step without `--checkpoint` before it."""


def _chosen(*named: str, number: int = 1) -> list[str]:
    """The checkpoints that were named in either form, so many; ConfigError when there are more or fewer."""
    chosen = [name for name in named if name]
    if len(chosen) != number:
        form = " ".join(["--checkpoint STEP"] * number)
        wanted = "one checkpoint is" if number == 1 else f"{number} checkpoints are"
        are_named = f"{len(chosen)} {'is' if len(chosen) == 1 else 'are'} named ({', '.join(chosen)})"
        told = are_named if chosen else "none is named"
        raise ConfigError(f"{wanted} wanted, and {told}; give {form}, where STEP is a step, latest or best")
    return chosen


@checkpoints_app.command()
def ls(run: RunArgument, as_json: JsonOption = False) -> None:
    """List a run's checkpoints, newest first: step, age, why it is kept, losses, bytes, sound?"""
    from trainer.checkpoint.inspect.listing import listing
    from trainer.config.folders import find_checkpoints

    answer(listing(find_checkpoints(run), as_json=as_json))


@checkpoints_app.command()
def show(run: RunArgument, checkpoint: CheckpointOption = "", as_json: JsonOption = False) -> None:
    """Show everything that a checkpoint's manifest says."""
    from trainer.checkpoint.inspect.show import show as show_one
    from trainer.config.folders import find_checkpoints

    folder = find_checkpoints(run)
    own = str(folder) if (folder / "manifest.json").is_file() else "latest"
    answer(show_one(folder, checkpoint or own, as_json=as_json))


@checkpoints_app.command()
def verify(run: RunArgument) -> None:
    """Read every byte of a run's checkpoints and compare it with the manifests; exit code 1 when one is not sound."""
    from trainer.checkpoint.inspect.listing import verification
    from trainer.config.folders import find_checkpoints

    text, all_sound = verification(find_checkpoints(run))
    tell(text)
    sys.exit(0 if all_sound else 1)


@checkpoints_app.command()
def diff(
    run: RunArgument,
    steps: Annotated[list[str] | None, typer.Argument(metavar="[A B]", hidden=True)] = None,
    checkpoint: Annotated[
        list[str] | None, typer.Option(metavar="STEP", help="Each of the two: a step, latest, best, or a path.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what differs between two checkpoints: facts, settings, files, and which tensors of the model."""
    from trainer.checkpoint.inspect.show import diff as diff_two
    from trainer.config.folders import find_checkpoints

    a, b = _chosen(*(checkpoint or []), *(steps or []), number=2)
    answer(diff_two(find_checkpoints(run), a, b, as_json=as_json))


def _set_pinned(run: str, chosen: list[str], pinned: bool) -> None:
    from trainer.checkpoint.inspect.pin import set_pinned
    from trainer.config.folders import find_checkpoints

    tell(set_pinned(find_checkpoints(run), chosen[0], pinned=pinned))


@checkpoints_app.command()
def pin(run: RunArgument, step: StepAlias = "", checkpoint: CheckpointOption = "") -> None:
    """Keep a checkpoint whatever the tiers say; may be done while the run trains."""
    _set_pinned(run, _chosen(checkpoint, step), True)


@checkpoints_app.command()
def unpin(run: RunArgument, step: StepAlias = "", checkpoint: CheckpointOption = "") -> None:
    """Take a pin away: the tiers decide again."""
    _set_pinned(run, _chosen(checkpoint, step), False)


@checkpoints_app.command()
def prune(
    run: RunArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go and why, and stop.")] = False,
    keep_last: Annotated[
        int | None, typer.Option(min=1, help="Instead of the settings' checkpoint.keep_last, this once.")
    ] = None,
    keep_best: Annotated[int | None, typer.Option(min=0, help="The same for keep_best.")] = None,
    keep_every_steps: Annotated[int | None, typer.Option(min=1, help="The same for keep_every_steps.")] = None,
    keep_epochs: Annotated[int | None, typer.Option(min=0, help="The same for keep_epochs.")] = None,
    max_disk_bytes: Annotated[
        float | None, typer.Option(min=1, help="The same for max_disk_bytes; may be written 5e9.")
    ] = None,
) -> None:
    """Remove what the newest checkpoint's settings, or these rules in their place, do not keep, as a run does after every commit."""
    from trainer.checkpoint.inspect.listing import pruning
    from trainer.config.folders import find_checkpoints

    given = {"keep_last": keep_last, "keep_best": keep_best, "keep_every_steps": keep_every_steps}
    more = {"keep_epochs": keep_epochs, "max_disk_bytes": max_disk_bytes}
    rules = {name: int(value) for name, value in {**given, **more}.items() if value is not None}
    tell(pruning(find_checkpoints(run), dry_run=dry_run, rules=rules))


@checkpoints_app.command()
def rm(
    run: RunArgument,
    checkpoint: Annotated[
        str,
        typer.Option(
            metavar="STEP", help="A step, latest, best, or the name of one that was set aside, as ls shows it."
        ),
    ],
) -> None:
    """Remove one checkpoint; not a pinned one, nor the last, nor while the run is trained."""
    from trainer.checkpoint.inspect.remove import remove
    from trainer.config.folders import find_checkpoints

    tell(remove(find_checkpoints(run), checkpoint))


@checkpoints_app.command()
def copy(
    run: RunArgument,
    places: Annotated[list[str], typer.Argument(metavar="DEST", help="The folder that gets step-*: on another disk.")],
    checkpoint: CheckpointOption = "",
) -> None:
    """Copy a checkpoint to another folder, read every byte back, and only then give it its name."""
    from trainer.checkpoint.mirror.duplicate import duplicate
    from trainer.config.folders import find_checkpoints

    *steps, target = places  # before --checkpoint a step stood between the run and DEST
    tell(duplicate(find_checkpoints(run), _chosen(checkpoint, *steps)[0], Path(target)))


@checkpoints_app.command()
def fetch(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN|PLACE",
            help="A run with checkpoint.mirror, or its folder there: a path, or a URL that fsspec opens.",
        ),
    ],
    step: StepAlias = "",
    checkpoint: Annotated[
        str, typer.Option(metavar="STEP", help="A step, latest or best; without it, what is there is listed.")
    ] = "",
    to: Annotated[
        str,
        typer.Option(
            metavar="RUN|FOLDER", help="Where it goes; by default to RUN, or the run that the last part of PLACE names."
        ),
    ] = "",
) -> None:
    """Bring a checkpoint back from a mirror, every byte verified; without --checkpoint, list what is there."""
    from trainer.checkpoint.mirror import fetch as fetching
    from trainer.config.folders import config_of, home_of_checkpoints, run_folder

    run = run.rstrip("/")
    config = config_of(run)
    where = fetching.place_of(config) if config else run
    if not (step or checkpoint):
        answer(fetching.offered(where))
        return
    home = home_of_checkpoints(to or (run if config else run.rpartition("/")[2]))
    tell(fetching.fetch(where, _chosen(checkpoint, step)[0], home, run_folder(config) if config else None))
