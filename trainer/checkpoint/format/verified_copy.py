"""The one way in which a checkpoint's files are copied: to a mirror and back, to another folder, into a run that resumes from elsewhere.

Each file is read once and compared with its digest on the way (a damaged checkpoint is not spread), written, read back from where it
was written, and compared again. Names that lead out of the checkpoint's folder are refused: it may be anybody's.
"""

import posixpath
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol

import xxhash

from trainer import files
from trainer.checkpoint.format.manifest import Manifest
from trainer.errors import CheckpointError

BLOCK_BYTES = 8 << 20


class Files(Protocol):
    """Where files are read and written; paths are relative to it, with `/`."""

    where: str

    def read(self, path: str) -> AbstractContextManager[BinaryIO]: ...

    def write(self, path: str) -> AbstractContextManager[BinaryIO]: ...

    def flushed(self, path: str) -> None:
        """Makes a file durable, and the next read of it one from there."""


class DiskFiles:
    """The files below a folder of a disk."""

    def __init__(self, folder: Path) -> None:
        self.where, self.folder = str(folder), folder

    def read(self, path: str) -> BinaryIO:
        return open(self.folder / path, "rb", buffering=0)

    @contextmanager
    def write(self, path: str) -> Iterator[BinaryIO]:
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        with open(self.folder / path, "wb") as file:
            yield file
            files.fsync_open_file(file)

    def flushed(self, path: str) -> None:
        files.forget_cached(self.folder / path)


class Pace:
    """Holds a stream of bytes to a bandwidth, by sleeping between blocks."""

    def __init__(
        self,
        bytes_per_second: float | None,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        between_blocks: Callable[[], object] = lambda: None,
    ) -> None:
        self._rate, self._sleep, self._clock, self._between_blocks = bytes_per_second, sleep, clock, between_blocks
        self._free_at = clock()

    @property
    def block_bytes(self) -> int:
        """A block takes a quarter of a second at most, so that the bandwidth is even."""
        return BLOCK_BYTES if self._rate is None else int(min(BLOCK_BYTES, max(1, self._rate / 4)))

    def moved(self, num_bytes: int) -> None:
        """Counts bytes that were read or written; idle time is not made up for."""
        self._between_blocks()
        if self._rate is not None:
            self._free_at = max(self._free_at, self._clock()) + num_bytes / self._rate
            if (wait := self._free_at - self._clock()) > 0:
                self._sleep(wait)


def copy_verified(
    manifest: Manifest, source: Files, target: Files, *, folder: str = "", into: str = "", pace: Pace | None = None
) -> None:
    """Copies every file of a checkpoint, but not its manifest, from `folder` of the source to `into` of the target.

    raises  CheckpointError where a name leads out of the folder, or bytes do not match their digest; what the two raise themselves
    """
    pace = pace or Pace(None)
    for name in safe_names(manifest, source.where):
        path, new_path, entry = posixpath.join(folder, name), posixpath.join(into, name), manifest.files[name]
        with source.read(path) as file, target.write(new_path) as new_file:
            _check(_digest(file, pace, new_file), entry, f"{source.where}/{path}", "take another checkpoint")
        target.flushed(new_path)
        with target.read(new_path) as back:
            remedy = "look whether that disk is broken, and copy to another place"
            _check(_digest(back, pace), entry, f"the copy {target.where}/{new_path}", remedy)


def safe_names(manifest: Manifest, where: str) -> list[str]:
    """The names of a checkpoint's files, in order. raises CheckpointError where one leads out of its folder"""
    for name in manifest.files:
        if not name or "\\" in name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise CheckpointError(
                f"the manifest of step {manifest.step} in {where} names a file {name!r} outside its folder, and is not copied; do not trust "
                "that place: take another checkpoint"
            )
    return sorted(manifest.files)


def _digest(source: BinaryIO, pace: Pace, target: BinaryIO | None = None) -> str:
    """xxh3-128 of all that a file gives, which goes to `target` on the way."""
    hasher = xxhash.xxh3_128()
    while block := source.read(pace.block_bytes):
        hasher.update(block)
        if target is not None:
            target.write(block)
        pace.moved(len(block))
    return hasher.hexdigest()


def _check(digest: str, entry: dict[str, Any], what: str, remedy: str) -> None:
    if digest != entry["xxh3_128"]:
        raise CheckpointError(
            f"{what} is damaged: its bytes do not match their digest in the manifest, and it is not copied; {remedy}"
        )
