"""Where a run's folders are, from its config or from what a person types."""

import os
import shlex
import shutil
import sys
from pathlib import Path

from trainer import files
from trainer.config.load import load_resolved
from trainer.config.schema import Config
from trainer.errors import LaunchError, TrainerError
from trainer.text import did_you_mean


def run_folder(config: Config) -> Path:
    """Where a run's logs, metrics and events go."""
    return files.project_folder() / config.runs_folder / config.name


def checkpoints_folder(config: Config) -> Path:
    """Where a run's checkpoints go."""
    return files.project_folder() / config.checkpoints_folder / config.name


def resume_point(config: Config) -> str:
    """What resume_from_checkpoint says; a path is meant from the project's folder, the other words stay as they are."""
    wanted = config.resume_from_checkpoint
    if wanted in ("latest", "best", "none") or wanted.isdigit():
        return wanted
    return str(files.project_folder() / wanted)


def check_can_be_made(setting: str, folder: Path) -> None:
    """Refuses a folder that no folder can become or that may not be written, and makes nothing."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        cause = "may not be written" if there.is_dir() else "is not a folder"
        raise LaunchError(f"{folder} cannot be made: {there} {cause}; fix that, or set {setting} to another place")


def find_run(run: str) -> Path:
    """The folder in runs/ of a run given by name or by that folder."""
    for folder in (files.project_folder() / "runs" / run, Path(run)):
        if (folder / "config.yaml").is_file():
            return folder
    raise TrainerError(f"there is no run {run!r}; {_known('runs', run)}")


def typed(folder: Path) -> str:
    """What a person types in a command to mean the run of this folder: its name in the usual place, its path elsewhere."""
    folder = folder.resolve()
    return folder.name if folder == (files.project_folder() / "runs" / folder.name).resolve() else str(folder)


def command_line(*words: str) -> str:
    """What a person types to give the trainer these words, quoted for a shell: by launch.sh in a checkout, else by the installed `trainer`."""
    if (checkout := files.checkout_folder()) is not None:
        program = "./launch.sh" if Path.cwd().resolve() == checkout else str(checkout / "launch.sh")
    else:
        program = "trainer" if shutil.which("trainer") else str(Path(sys.prefix, "bin", "trainer"))
    return shlex.join([program, *words])


def find_checkpoints(run: str) -> Path:
    """The folder of checkpoints of a run given by name or by its folder in runs/, or that folder itself, or that of one checkpoint."""
    for folder in (files.project_folder() / "runs" / run, Path(run)):
        # A checkpoint has a config.yaml too, and then this very checkpoint is meant.
        if (folder / "config.yaml").is_file() and not (folder / "manifest.json").is_file():
            return checkpoints_folder(load_resolved(folder / "config.yaml"))
    for folder in (files.project_folder() / "checkpoints" / run, Path(run)):
        if folder.is_dir():
            return folder
    known = _known("checkpoints", run)
    raise TrainerError(f"there are no checkpoints of {run!r}; {known} (or give the path of a folder)")


def home_of_checkpoints(wanted: str) -> Path:
    """The same, where there need not be any yet: a bare name is a run's, anything else a folder."""
    try:
        return find_checkpoints(wanted)
    except TrainerError:
        return Path(wanted) if "/" in wanted else files.project_folder() / "checkpoints" / wanted


def config_of(run: str) -> Config | None:
    """The settings of a run given by name or by its folder in runs/; None where that is no run."""
    folder = Path(run) if "/" in run else files.project_folder() / "runs" / run
    is_run = (folder / "config.yaml").is_file() and not (folder / "manifest.json").is_file()
    return load_resolved(folder / "config.yaml") if is_run else None


def folder_of_run(checkpoint: Path) -> Path | None:
    """The folder in runs/ of the run that a checkpoint's folder belongs to; None where there is none.

    The run's name is that of the folder which the checkpoint lies in: a renamed run's settings are not rewritten in it.
    """
    names, runs = [checkpoint.resolve().parent.name], files.project_folder() / "runs"
    try:
        config = load_resolved(checkpoint / "config.yaml")
    except (TrainerError, OSError):
        pass  # it is damaged, and its place tells
    else:
        names, runs = [*names, config.name], files.project_folder() / config.runs_folder
    return next((runs / name for name in names if (runs / name).is_dir()), None)


def _known(kind: str, wanted: str) -> str:
    folder = files.project_folder() / kind
    paths = folder.iterdir() if folder.is_dir() else ()
    names = [path.name for path in paths if path.is_dir() and not path.name.startswith(".")]
    return did_you_mean(wanted, names) if names else f"{folder} is empty: nothing was trained here yet; train first"
