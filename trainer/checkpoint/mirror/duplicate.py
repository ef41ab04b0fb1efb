"""A copy of one checkpoint in another folder, on another disk: it has its name only when every byte of it was read back."""

import time
from pathlib import Path

from trainer import files
from trainer.checkpoint.format.manifest import MANIFEST, Manifest
from trainer.checkpoint.format.store import CheckpointStore
from trainer.checkpoint.format.verified_copy import DiskFiles, copy_verified
from trainer.checkpoint.resume.lock import lock_now
from trainer.checkpoint.resume.lookup import one_of
from trainer.errors import CheckpointError
from trainer.text import duration, size


def duplicate(folder: Path, wanted: str, target: Path) -> str:
    """Copies the checkpoint that `wanted` names to `target/step-*`; says where it is and what was verified.

    raises CheckpointError when something has that name, there is no room, or source or copy is not sound; no half of a copy is left behind
    """
    entry = one_of(folder, wanted)
    manifest = entry.described()
    final = CheckpointStore(target).path(manifest.step)
    _check(entry.path, manifest, final)
    started = time.perf_counter()
    try:
        with lock_now(target, "wait for it, or copy to another folder"):
            _copy_and_commit(entry.path, manifest, final)
    except OSError as error:
        remedy = "fix that" if entry.path.is_dir() else "a trainer has pruned it meanwhile: pin one that is kept first"
        raise CheckpointError(
            f"{entry.path} could not be copied to {target} ({error}); {remedy}, and copy again"
        ) from None
    took = duration(time.perf_counter() - started)
    return f"{final}: {size(manifest.num_bytes)} copied, every byte read back and sound, in {took}"


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
        copy_verified(manifest, DiskFiles(source), DiskFiles(staging))
        (staging / MANIFEST).write_bytes((source / MANIFEST).read_bytes())
        files.fsync_file(staging / MANIFEST)
        files.forget_cached(staging / MANIFEST)
        if problem := CheckpointStore(final.parent).entry(staging).problem:
            raise CheckpointError(
                f"the copy of {source} in {final.parent} is not sound ({problem}); is that disk broken?"
            )
        files.commit_folder(staging, final)
    except BaseException:
        if staging.exists():  # after the rename the copy is whole, though the disk may not have its name yet
            files.remove_folder(staging)
        raise
