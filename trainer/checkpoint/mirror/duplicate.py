"""A copy of one checkpoint in another folder, on another disk: it has its name only when every byte of it was read back."""

import os
import time
from pathlib import Path

from trainer import files, locks
from trainer.checkpoint.format.manifest import MANIFEST, Manifest
from trainer.checkpoint.format.store import CheckpointStore, verify
from trainer.checkpoint.resume.lookup import one_of
from trainer.errors import CheckpointError
from trainer.text import duration, size

_BLOCK_BYTES = 8 << 20


def duplicate(folder: Path, wanted: str, target: Path) -> str:
    """Copies the checkpoint that `wanted` names to `target/step-*`; says where it is and what was verified.

    raises CheckpointError when something has that name, there is no room, or source or copy is not sound; no half of a copy is left behind
    """
    entry = one_of(folder, wanted)
    final = CheckpointStore(target).path(entry.manifest.step)
    _check(entry.path, entry.manifest, final)
    started = time.perf_counter()
    try:
        held = locks.take(target / ".lock")
        if held is None:
            raise CheckpointError(
                f"another process writes checkpoints to {target} right now; wait for it, or copy to another folder"
            )
        with held:
            _copy_and_commit(entry.path, entry.manifest, final)
    except OSError as error:
        raise CheckpointError(
            f"{entry.path} could not be copied to {target} ({error}); {_advice(entry.path)}, and copy again"
        ) from None
    took = duration(time.perf_counter() - started)
    return f"{final}: {size(entry.manifest.num_bytes)} copied, every byte read back and sound, in {took}"


def _check(source: Path, manifest: Manifest, final: Path) -> None:
    if final.exists():
        raise CheckpointError(
            f"{final} exists already, and nothing is overwritten; copy to another folder, or move it away"
        )
    free = files.free_bytes(final.parent)
    if free < manifest.num_bytes:
        raise CheckpointError(
            f"{source} has {size(manifest.num_bytes)}, and {size(free)} are free where {final.parent} is; make room, or copy to "
            "another disk"
        )


def _copy_and_commit(source: Path, manifest: Manifest, final: Path) -> None:
    """Copies under a name that is not a checkpoint's, the manifest last; reads every byte back from the disk; renames."""
    staging = CheckpointStore(final.parent).begin(manifest.step)
    try:
        for name in (*manifest.files, MANIFEST):
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            _copy_file(source / name, staging / name)
        if problems := verify(staging):
            raise CheckpointError(_unsound(source, staging, problems))
        files.commit_folder(staging, final)
    except BaseException:
        if staging.exists():  # after the rename the copy is whole, though the disk may not have its name yet
            files.remove_folder(staging)
        raise


def _copy_file(source: Path, target: Path) -> None:
    """Copies a file's bytes to the disk, and forgets them in memory, so that reading them back reads the disk."""
    with open(source, "rb", buffering=0) as there, open(target, "wb") as here:
        while block := there.read(_BLOCK_BYTES):
            here.write(block)
        files.fsync_open_file(here)
        os.posix_fadvise(here.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _unsound(source: Path, staging: Path, problems: list[str]) -> str:
    if of_source := verify(source):
        return f"{source} is not sound ({'; '.join(of_source)}), and was not copied; copy another checkpoint"
    return f"the copy of {source} in {staging.parent} is not sound ({'; '.join(problems)}), and was removed; is that disk broken?"


def _advice(source: Path) -> str:
    return "mend that" if source.is_dir() else "a trainer has pruned it meanwhile: pin one that is kept first"
