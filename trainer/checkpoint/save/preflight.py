"""Whether the disk can take what the run will write, proved before the first step; forecast.py says it during the run.

The proof, in order: free space, the limit on a file's size (`ulimit -f`), the reservation of one whole checkpoint, which meets
quotas that nobody tells of and writes nothing, and some megabytes written, read back from the disk, compared and removed.
"""

import ctypes
import errno
import logging
import os
import resource
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trainer import files
from trainer.errors import CheckpointError, NoRoomError
from trainer.text import size

log = logging.getLogger(__name__)

STAGING = ".staging-preflight"
TRIAL_BYTES = 16 << 20

_FULL = (errno.ENOSPC, errno.EDQUOT)
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV)
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Preflight:
    """What the proof showed."""

    checkpoint_bytes: int
    needed_bytes: int
    """What the kept ones and one in flight will take besides what is there."""
    free_bytes: int
    is_reserved: bool
    """Whether the file system could reserve a whole checkpoint, quota included; False where it knows no reservations."""
    bytes_per_second: float
    """Speed of the trial write, fsync included."""
    trial_bytes: int

    @property
    def sentence(self) -> str:
        proved = "a whole one could be reserved"
        if not self.is_reserved:
            proved = "this file system reserves nothing, so a quota shows only later"
        return (
            f"a checkpoint takes {size(self.checkpoint_bytes)}; {size(self.needed_bytes)} more are needed at most and "
            f"{size(self.free_bytes)} are free; {proved}; a trial of {size(self.trial_bytes)} was written at {size(self.bytes_per_second)}/s and read back right"
        )


def preflight(
    folder: Path, file_bytes: dict[str, int], *, num_kept: int, there_bytes: int = 0, max_disk_bytes: int | None = None
) -> Preflight:
    """Proves that the checkpoints of a run can be written to `folder`, which must exist.

    file_bytes      the files of one checkpoint, by name
    num_kept        how many are kept at most; one more is in flight
    there_bytes     what checkpoints that are there already take, and give back when they are pruned
    max_disk_bytes  the run's own bound, where it has one
    raises          CheckpointError with figures
    """
    one = sum(file_bytes.values())
    needed, free = check_free(folder, one, num_kept=num_kept, there_bytes=there_bytes, max_disk_bytes=max_disk_bytes)
    with _disk_errors(folder):
        _check_file_limit(file_bytes)
        staging = folder / STAGING
        if staging.exists():
            files.remove_folder(staging)
        staging.mkdir()
        try:
            is_reserved = all(_reserve(staging, name, num_bytes) for name, num_bytes in file_bytes.items())
            for path in staging.iterdir():
                path.unlink()
            # Of a bound's size at most, or the trial itself would break it.
            trial_bytes = TRIAL_BYTES if max_disk_bytes is None else min(TRIAL_BYTES, one)
            speed = _trial(staging / "trial", trial_bytes)
        finally:
            files.remove_folder(staging)
    return Preflight(one, needed, free, is_reserved, speed, trial_bytes)


def check_free(
    folder: Path, one: int, *, num_kept: int, there_bytes: int, max_disk_bytes: int | None
) -> tuple[int, int]:
    """(bytes that are needed besides those that are there, bytes that are free) for checkpoints of `one` bytes each; nothing is written.

    raises  CheckpointError with figures where that is too little; the other arguments are those of `preflight`
    """
    if max_disk_bytes is not None and max_disk_bytes < 2 * one:
        raise CheckpointError(
            f"checkpoint.max_disk_bytes is {size(max_disk_bytes)}, and the run needs {size(2 * one)} at least (one checkpoint of "
            f"{size(one)} and the next one while it is written); raise it"
        )
    whole = min(one * (num_kept + 1), max_disk_bytes or one * (num_kept + 1))
    needed = max(0, whole - there_bytes)
    with _disk_errors(folder):
        free = files.free_bytes(folder)
    if needed > free:
        raise NoRoomError(
            f"the checkpoints of this run need {size(needed)} more in {folder} ({num_kept} kept and one being written, {size(one)} each), "
            f"and {size(free)} are free; keep fewer (checkpoint.keep_last), set checkpoint.max_disk_bytes, make room, or set "
            "checkpoints_folder to a larger disk"
        )
    return needed, free


@contextmanager
def _disk_errors(folder: Path):
    """What the system refuses becomes a paragraph."""
    try:
        yield
    except OSError as error:
        kind = NoRoomError if error.errno in _FULL else CheckpointError
        raise kind(
            f"{folder} cannot take checkpoints ({error.strerror or error}); fix that, or set checkpoints_folder to another place"
        ) from None


def _check_file_limit(file_bytes: dict[str, int]) -> None:
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    name = max(file_bytes, key=file_bytes.__getitem__)
    if limit != resource.RLIM_INFINITY and file_bytes[name] > limit:
        raise CheckpointError(
            f"{name} of a checkpoint has {size(file_bytes[name])}, and this process may write files of {size(limit)} at most; raise that "
            "limit (ulimit -f unlimited) and start again"
        )


def _reserve(staging: Path, name: str, num_bytes: int) -> bool:
    """Reserves a file's bytes on the disk; False where the file system cannot, CheckpointError where it has not so many."""
    descriptor = os.open(staging / name.replace("/", "-"), os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        code = _fallocate(descriptor, num_bytes) if num_bytes else 0
    finally:
        os.close(descriptor)
    if code in _UNSUPPORTED:
        return False
    if code == errno.EFBIG:
        raise CheckpointError(
            f"{name} of a checkpoint has {size(num_bytes)}, and the file system of {staging.parent} holds no file of that size; set "
            "checkpoints_folder to another disk"
        )
    if code:
        kind = NoRoomError if code in _FULL else CheckpointError
        raise kind(
            f"one checkpoint cannot be reserved in {staging.parent}: {os.strerror(code)} at {name} of {size(num_bytes)}, though "
            f"{size(files.free_bytes(staging))} are free; raise the quota, make room, or set checkpoints_folder to another disk"
        )
    return True


def _fallocate(descriptor: int, num_bytes: int) -> int:
    """Linux's fallocate; returns its error number, 0 for none.

    Not os.posix_fallocate: where a file system cannot reserve, that one writes into every block of the file instead.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    call = getattr(libc, "fallocate64", None) or getattr(libc, "fallocate", None)
    if call is None:
        return errno.ENOSYS
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return 0 if call(descriptor, 0, 0, num_bytes) == 0 else ctypes.get_errno()


def _trial(path: Path, trial_bytes: int) -> float:
    """Writes random bytes, waits for the disk, reads them back from it and compares; returns bytes a second of the write."""
    block = os.urandom(min(_BLOCK_BYTES, trial_bytes))
    num_blocks = trial_bytes // len(block)
    started = time.perf_counter()
    with open(path, "wb") as file:
        for number in range(num_blocks):
            file.write(_turned(block, number))
        files.fsync_open_file(file)
    seconds = time.perf_counter() - started
    files.forget_cached(path)
    with open(path, "rb") as file:
        for number in range(num_blocks):
            if file.read(len(block)) != _turned(block, number):
                raise CheckpointError(
                    f"a trial file in {path.parent.parent} came back with other bytes than were written, in megabyte {number + 1}; the disk "
                    "or its cable is broken: set checkpoints_folder to another one"
                )
    return num_blocks * len(block) / max(seconds, 1e-9)


def _turned(block: bytes, number: int) -> bytes:
    """The block of this number: all differ, so that two that changed places are found."""
    return block[number:] + block[:number]
