"""Whole runs removed or renamed: both folders of one, what it left in runs/ and its checkpoints, and never while a process trains it."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from trainer import files
from trainer.checkpoint.format.store import CheckpointStore, folder_bytes
from trainer.checkpoint.mirror.worker import mirror_settings
from trainer.checkpoint.resume.lock import lock_checkpoints
from trainer.config.folders import checkpoints_folder, command_line, find_run, run_folder
from trainer.config.load import dump, load_resolved
from trainer.config.schema import Config, name_problem
from trainer.ending.outcome_file import OUTCOME
from trainer.errors import ConfigError, TrainerError
from trainer.journal import Journal, read_events
from trainer.locks import lock_run
from trainer.text import size


@dataclass(frozen=True)
class Home:
    """Where a run lives. Its name is its folders': a renamed one's settings may still have to follow."""

    folder: Path
    """runs/NAME."""
    config: Config
    checkpoints: Path

    @property
    def name(self) -> str:
        return self.folder.name


def home_of(run: str) -> Home:
    """The home of a run given by name or by its folder in runs/; TrainerError when there is none, or another folder was named."""
    folder = find_run(run).resolve()
    config = load_resolved(folder / "config.yaml")
    if folder.parent != run_folder(config).resolve().parent:
        raise TrainerError(
            f"{folder} is not where its runs_folder says ({run_folder(config).parent}), so what belongs to it is not known; name a run"
        )
    return Home(folder, config, checkpoints_folder(config).with_name(folder.name))


@contextmanager
def _held(home: Home) -> Iterator[None]:
    """Both folders, so that no process trains the run meanwhile. raises TrainerError when one does"""
    with ExitStack() as stack:
        stack.enter_context(lock_run(home.folder))
        if home.checkpoints.is_dir():
            stack.enter_context(lock_checkpoints(home.checkpoints))
        yield


def remove(run: str, *, is_sure: bool) -> str:
    """Removes a run's folder and its checkpoints; says what went, and what is left elsewhere.

    is_sure  whether the person confirmed it; without it nothing is removed
    raises   TrainerError when the person is not sure, a checkpoint is pinned, a process trains it, or the disk refuses
    """
    home = home_of(run)
    pinned = [str(manifest.step) for manifest in CheckpointStore(home.checkpoints).sound_manifests() if manifest.pinned]
    if pinned:
        raise TrainerError(
            f"checkpoints of {home.name} are pinned (steps {', '.join(pinned)}), so the run stays; take the pins away first: "
            f"{command_line('checkpoints', 'unpin', home.name, '--checkpoint', pinned[0])}"
        )
    there = [path for path in (home.checkpoints, home.folder) if path.is_dir()]
    removed = " and ".join(f"{path} ({size(folder_bytes(path))})" for path in there)
    if not is_sure:
        remedy = "nothing was removed: say that you are sure with --yes"
        raise TrainerError(f"this would remove {removed} for good; {remedy}")
    place = mirror_settings(home.config.checkpoint, home.name)
    with _held(home):
        try:
            # The checkpoints first: a run without them refuses to start over, one without its history would go on.
            for path in there:
                files.remove_folder(path)
        except OSError as error:
            why = f"{home.name} could not be removed whole ({error})"
            raise TrainerError(f"{why}; fix that and remove it again") from None
    return f"removed: {removed}" + (f"\nits copies in {place.where} are left" if place else "")


def rename(run: str, name: str) -> str:
    """Gives a run another name: its folder, its checkpoints and its settings; says where everything is now.

    What a kill divides, the same command finishes: the folder in runs/, by which a run is found, goes last.

    raises  TrainerError when the name cannot be one or is taken, a process trains the run, or the disk refuses
    """
    if problem := name_problem(name):
        raise ConfigError(problem)
    home = home_of(run)
    folder, checkpoints = home.folder.with_name(name), home.checkpoints.with_name(name)
    was_divided = not home.checkpoints.is_dir() and _began(home, name)
    taken = [str(path) for path in (folder, *([] if was_divided else [checkpoints])) if path.exists()]
    if taken:
        raise TrainerError(f"{' and '.join(taken)} exists already, and nothing is replaced; take another name")
    with _held(home):
        try:
            Journal(home.folder).write("rename", name=name, was=home.name)
            if home.checkpoints.is_dir():
                files.move_folder(home.checkpoints, checkpoints)
            files.write_atomic(home.folder / "config.yaml", dump(home.config.model_copy(update={"name": name})))
            _follow(home.folder, folder)
            files.move_folder(home.folder, folder)
        except OSError as error:
            why = f"{home.name} could not be renamed ({error})"
            raise TrainerError(f"{why}; fix that and give the same command again") from None
    place = mirror_settings(home.config.checkpoint, name)
    copies = f"\nnew copies go to {place.where}; those that were made stay where they are" if place else ""
    return f"{home.name} is {name} now: {folder} and {checkpoints}; go on with name={name}{copies}"


def _began(home: Home, name: str) -> bool:
    """Whether the last renaming was to this name, and is not finished; starts that were refused in between change nothing of it."""
    renamings = read_events(home.folder, "rename")
    return bool(renamings) and renamings[-1].get("name") == name


def _follow(before: Path, after: Path) -> None:
    """Lets the outcome say where the exported model will be."""
    path = before / OUTCOME
    if path.is_file():
        old, new = (json.dumps(f"{folder}/")[1:-1] for folder in (before, after))
        files.write_atomic(path, path.read_text(encoding="utf-8").replace(old, new))
