"""The checkpoints that a person means, by what was typed; a look at manifests, names and sizes, no byte of a file is read."""

import logging
from pathlib import Path

from trainer.checkpoint.format.manifest import MANIFEST
from trainer.checkpoint.format.store import CheckpointStore, Entry, best_entries
from trainer.errors import CheckpointError

log = logging.getLogger(__name__)


def all_of(folder: Path) -> list[Entry]:
    """Every checkpoint of a folder, newest first, or the one whose folder it is; CheckpointError when there is none."""
    if (folder / MANIFEST).is_file():
        return [CheckpointStore(folder.parent).entry(folder)]
    entries = CheckpointStore(folder).entries()
    if present := [entry for entry in entries if entry.path.is_dir()]:  # a trainer prunes meanwhile
        return present
    raise CheckpointError(f"{folder} holds no checkpoints (folders step-*); train first, or name a run or its folder")


def one_of(folder: Path, wanted: str) -> Entry:
    """The checkpoint that `latest`, `best`, a step or a path names; its manifest can be read, its files may be damaged."""
    entry = _named(folder, wanted)
    if entry.manifest is None:
        raise CheckpointError(f"{entry.problem}; name another checkpoint, or restore this one from a copy")
    return entry


def _named(folder: Path, wanted: str) -> Entry:
    if wanted not in ("latest", "best") and not wanted.isdecimal():
        if not (Path(wanted) / MANIFEST).is_file():
            raise CheckpointError(
                f"there is no checkpoint {wanted}; give latest, best, a step, or the path of a checkpoint's folder"
            )
        return CheckpointStore(Path(wanted).parent).entry(Path(wanted))
    entries = all_of(folder)
    if not wanted.isdecimal():
        return _best(folder, entries) if wanted == "best" else _latest(folder, entries)
    if of_step := [entry for entry in entries if entry.step == int(wanted)]:
        return of_step[0]
    raise CheckpointError(
        f"there is no checkpoint of step {int(wanted)} in {folder}; take one of the steps: {_steps(entries)}"
    )


def _latest(folder: Path, entries: list[Entry]) -> Entry:
    """The newest that is whole; newer ones that are not are told."""
    for entry in entries:
        if entry.is_whole:
            return entry
        log.warning("%s is passed over: %s", entry.path.name, entry.problem)
    raise CheckpointError(f"no checkpoint in {folder} is whole; name a step: {_steps(entries)}")


def _best(folder: Path, entries: list[Entry]) -> Entry:
    """The one with the lowest validation loss, and no other in its place where it is not whole."""
    ranked = best_entries(entries)
    if not ranked:
        raise CheckpointError(
            f"no checkpoint in {folder} has a validation loss, so none is best; name a step: {_steps(entries)}"
        )
    if problem := ranked[0].problem:
        others = [entry.step for entry in ranked if not entry.problem]
        instead = f"the next best is that of step {others[0]}" if others else "no other with a validation loss is whole"
        raise CheckpointError(
            f"{ranked[0].path} is the best and not whole ({problem}); restore it from a copy, or name a step: {instead}"
        )
    return ranked[0]


def _steps(entries: list[Entry]) -> str:
    return ", ".join(str(entry.step) for entry in entries)
