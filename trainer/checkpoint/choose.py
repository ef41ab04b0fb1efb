"""The checkpoints that a person means, by what was typed; a look at manifests, names and sizes, no byte of a file is read."""

from pathlib import Path

from trainer.checkpoint.manifest import MANIFEST
from trainer.checkpoint.retention import best_first
from trainer.checkpoint.store import CheckpointStore, Entry
from trainer.errors import CheckpointError


def all_of(folder: Path) -> list[Entry]:
    """Every checkpoint of a folder, newest first, or the one whose folder it is; CheckpointError when there is none."""
    if (folder / MANIFEST).is_file():
        return [CheckpointStore(folder.parent).entry(folder)]
    entries = [entry for entry in CheckpointStore(folder).entries() if entry.path.is_dir()]  # a trainer prunes meanwhile
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
    whole = [entry for entry in entries if entry.manifest and not entry.problem]
    manifests = [entry.manifest for entry in whole]
    chosen = best_first(manifests)[:1] if wanted == "best" else manifests[:1]
    if not chosen:
        missing = "has a validation loss and is whole, so none is best" if wanted == "best" else "is whole"
        raise CheckpointError(f"no checkpoint in {folder} {missing}; name a step: {_steps(entries)}")
    return next(entry for entry in whole if entry.step == chosen[0].step)


def _of_step(folder: Path, entries: list[Entry], step: int) -> Entry:
    for entry in entries:
        if entry.step == step:
            return entry
    raise CheckpointError(f"there is no checkpoint of step {step} in {folder}; take one of the steps: {_steps(entries)}")


def _steps(entries: list[Entry]) -> str:
    return ", ".join(str(entry.step) for entry in entries)
