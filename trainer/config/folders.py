"""Where a run's folders are, from its config or from what a person types."""

from pathlib import Path

from trainer import files
from trainer.config.load import load_resolved
from trainer.config.schema import Config
from trainer.errors import TrainerError
from trainer.text import did_you_mean


def run_folder(config: Config) -> Path:
    """Where a run's logs, metrics and events go."""
    return files.project_folder() / config.runs_folder / config.name


def checkpoints_folder(config: Config) -> Path:
    """Where a run's checkpoints go."""
    return files.project_folder() / config.checkpoints_folder / config.name


def find_run(run: str) -> Path:
    """The folder in runs/ of a run given by name or by that folder."""
    for folder in (files.project_folder() / "runs" / run, Path(run)):
        if (folder / "config.yaml").is_file():
            return folder
    raise TrainerError(f"there is no run {run!r}; {_known('runs', run)}")


def find_checkpoints(run: str) -> Path:
    """The folder of checkpoints of a run given by name, or a folder given by its path (also that of one checkpoint)."""
    named = files.project_folder() / "runs" / run / "config.yaml"
    if named.is_file():
        return checkpoints_folder(load_resolved(named))
    for folder in (files.project_folder() / "checkpoints" / run, Path(run)):
        if folder.is_dir():
            return folder
    raise TrainerError(f"there are no checkpoints of {run!r}; {_known('checkpoints', run)} (or give the path of a folder)")


def _known(kind: str, wanted: str) -> str:
    folder = files.project_folder() / kind
    names = [path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")] if folder.is_dir() else []
    return did_you_mean(wanted, names) if names else f"{folder} is empty: nothing was trained here yet"
