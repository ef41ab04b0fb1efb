"""The checkpoints that a person means, by what was typed; a look at manifests, names and sizes, no byte of a file is read."""

import logging
from pathlib import Path

from trainer.checkpoint.format.manifest import MANIFEST
from trainer.checkpoint.format.retention import best_first
from trainer.checkpoint.format.store import CheckpointStore, Entry
from trainer.errors import CheckpointError

log = logging.getLogger(__name__)


def all_of(folder: Path) -> list[Entry]:
    """Every checkpoint of a folder, newest first, or the one whose folder it is; CheckpointError when there is none."""
    if (folder / MANIFEST).is_file():
        return [CheckpointStore(folder.parent).entry(folder)]
    entries = [
        entry for entry in CheckpointStore(folder).entries() if entry.path.is_dir()
    ]  # a trainer prunes meanwhile
    if not entries:
        raise CheckpointError(
            f"{folder} holds no checkpoints (folders step-*); train first, or name a run or its folder"
        )
    return entries


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
    if wanted.isdecimal():
        return _of_step(folder, entries, int(wanted))
    return _best(folder, entries) if wanted == "best" else _latest(folder, entries)


def _latest(folder: Path, entries: list[Entry]) -> Entry:
    """The newest that is whole; newer ones that are not are told."""
    for entry in entries:
        if entry.manifest and not entry.problem:
            return entry
        log.warning("%s is passed over: %s", entry.path.name, entry.problem)
    raise CheckpointError(f"no checkpoint in {folder} is whole; name a step: {_steps(entries)}")


def _best(folder: Path, entries: list[Entry]) -> Entry:
    """The one with the lowest validation loss, and no other in its place where it is not whole."""
    of_manifest = {
        id(entry.manifest): entry for entry in entries
    }  # a folder may have another step's name, which is a damage
    ranked = [
        of_manifest[id(manifest)] for manifest in best_first([entry.manifest for entry in entries if entry.manifest])
    ]
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


def _of_step(folder: Path, entries: list[Entry], step: int) -> Entry:
    for entry in entries:
        if entry.step == step:
            return entry
    raise CheckpointError(
        f"there is no checkpoint of step {step} in {folder}; take one of the steps: {_steps(entries)}"
    )


def _steps(entries: list[Entry]) -> str:
    return ", ".join(str(entry.step) for entry in entries)
