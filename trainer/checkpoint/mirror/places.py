"""Copies of committed checkpoints in a second place: another disk's folder, or any URL that fsspec knows.

    PLACE/step-00001500/   the same files under the same names; the manifest is written last there too, so without it nothing is there

What a copy does: read each file once, comparing it with its digest (a damaged checkpoint is not spread), write it, read it back,
compare again, then the manifest, then remove what is too many. A folder is written under a staging name and renamed, as at home; an
object store has no rename, and the manifest alone commits. Whatever goes wrong is a CheckpointError, which the caller counts and tells:
the run is safe without.
"""

import posixpath
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol

import xxhash

from trainer import files
from trainer.checkpoint.format.manifest import MANIFEST, Manifest, parse_manifest
from trainer.checkpoint.format.store import CheckpointStore
from trainer.errors import CheckpointError

BLOCK_BYTES = 8 << 20


@dataclass(frozen=True)
class Copied:
    """What a copy did."""

    step: int
    where: str
    num_bytes: int
    """Bytes written there; 0 when the same checkpoint was there already."""
    seconds: float
    removed: list[int]
    """Steps that were too many there."""


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
        """So many bytes went over the line, this way or that; time in which nothing went is not made up for."""
        self._between_blocks()
        if self._rate is not None:
            self._free_at = max(self._free_at, self._clock()) + num_bytes / self._rate
            if (wait := self._free_at - self._clock()) > 0:
                self._sleep(wait)


class Place(Protocol):
    """What a second place can do with the files of checkpoints; paths are relative to it, with `/`."""

    where: str

    def steps(self) -> list[int]:
        """Steps of all checkpoints there that have a manifest, newest first."""

    def folders(self) -> list[str]:
        """Names of the folders there that are no checkpoints: those of runs, where several share a place."""

    def sweep(self) -> None:
        """Removes what interrupted copies left."""

    def begin(self, step: int) -> str:
        """Makes way for a new copy of this step; returns the folder to write its files into."""

    def write(self, path: str) -> AbstractContextManager[BinaryIO]: ...

    def read(self, path: str) -> AbstractContextManager[BinaryIO]: ...

    def flushed(self, path: str) -> None:
        """Makes a file durable, and the next read of it one from there."""

    def commit(self, folder: str, step: int, manifest: bytes) -> None:
        """Makes the files of `folder` the checkpoint of this step, the manifest last."""

    def remove(self, step: int) -> None: ...


class LocalPlace:
    """A folder on a disk: staging, fsync, rename, as at home."""

    def __init__(self, folder: Path) -> None:
        self.where, self._folder, self._store = str(folder), folder, CheckpointStore(folder)

    def steps(self) -> list[int]:
        return [entry.step for entry in self._store.entries() if (entry.path / MANIFEST).is_file()]

    def folders(self) -> list[str]:
        there = self._folder.iterdir() if self._folder.is_dir() else ()
        return [path.name for path in there if path.is_dir() and not path.name.startswith((".", "step-"))]

    def sweep(self) -> None:
        self._store.sweep()

    def begin(self, step: int) -> str:
        return self._store.begin(step).name

    @contextmanager
    def write(self, path: str) -> Iterator[BinaryIO]:
        (self._folder / path).parent.mkdir(parents=True, exist_ok=True)
        with open(self._folder / path, "wb") as file:
            yield file
            files.fsync_open_file(file)

    def read(self, path: str) -> BinaryIO:
        return open(self._folder / path, "rb", buffering=0)

    def flushed(self, path: str) -> None:
        files.forget_cached(self._folder / path)

    def commit(self, folder: str, step: int, manifest: bytes) -> None:
        (self._folder / folder / MANIFEST).write_bytes(manifest)
        if self._store.path(step).exists():  # of another branch, or damaged: its successor is whole by now
            files.remove_folder(self._store.path(step))
        files.commit_folder(self._folder / folder, self._store.path(step))

    def remove(self, step: int) -> None:
        files.remove_folder(self._store.path(step))


class RemotePlace:
    """A URL of fsspec: an object store, another machine."""

    def __init__(self, url: str) -> None:
        import fsspec  # tens of milliseconds, and only who copies to a URL needs it

        self.where = url.rstrip("/")
        self._system, self._root = fsspec.core.url_to_fs(self.where)

    def _path(self, path: str) -> str:
        return posixpath.join(self._root, path)

    def _names(self) -> list[str]:
        """Names of all that is there."""
        self._system.invalidate_cache()
        try:
            return [posixpath.basename(path.rstrip("/")) for path in self._system.ls(self._root, detail=False)]
        except FileNotFoundError:
            return []

    def _folders(self) -> set[int]:
        """Steps of all folders there, those without a manifest included."""
        steps = {int(match[1]): name for name in self._names() if (match := re.fullmatch(r"step-([0-9]+)", name))}
        return {step for step, name in steps.items() if name == _name(step)}

    def folders(self) -> list[str]:
        there = [name for name in self._names() if not name.startswith((".", "step-"))]
        return [name for name in there if self._system.isdir(self._path(name))]

    def steps(self) -> list[int]:
        found = [step for step in self._folders() if self._system.exists(self._path(f"{_name(step)}/{MANIFEST}"))]
        return sorted(found, reverse=True)

    def sweep(self) -> None:
        for step in self._folders() - set(self.steps()):
            self.remove(step)

    def begin(self, step: int) -> str:
        if step in self._folders():
            self.remove(step)
        self._system.makedirs(self._path(_name(step)), exist_ok=True)
        return _name(step)

    def write(self, path: str) -> Any:
        self._system.makedirs(posixpath.dirname(self._path(path)), exist_ok=True)
        return self._system.open(self._path(path), "wb")

    def read(self, path: str) -> Any:
        return self._system.open(self._path(path), "rb")

    def flushed(self, path: str) -> None:
        self._system.invalidate_cache()

    def commit(self, folder: str, step: int, manifest: bytes) -> None:
        self._system.pipe_file(self._path(f"{folder}/{MANIFEST}"), manifest)

    def remove(self, step: int) -> None:
        manifest = self._path(f"{_name(step)}/{MANIFEST}")
        if self._system.exists(manifest):
            self._system.rm_file(manifest)  # first: what is half removed is not there
        self._system.rm(self._path(_name(step)), recursive=True)


def open_place(where: str) -> Place:
    """The second place of a path or URL; a `file://` URL is a folder like any other. CheckpointError when fsspec cannot open it."""
    for scheme in ("file://", "local://"):
        if where.startswith(scheme):
            return LocalPlace(Path(where.removeprefix(scheme)))
    if "://" not in where:
        return LocalPlace(Path(where))
    with _told(f"the second place {where} cannot be opened"):
        return RemotePlace(where)


def place_of_run(second_place: str, name: str) -> str:
    """Where one run's copies are inside checkpoint.mirror, which several runs may share."""
    return f"{second_place.rstrip('/')}/{name}"


def copy_checkpoint(checkpoint: Path, where: str, *, keep: int, pace: Pace | None = None) -> Copied:
    """Copies one committed checkpoint to a second place, verified there, and keeps the newest `keep` of the place.

    pace    bandwidth; both the writing and the reading back count
    raises  CheckpointError when it could not be done; what an interrupted copy leaves is not there, and the next one removes it

    Checkpoints there that are newer than this one belong to a branch that was left, and are the first to go.
    """
    started, pace = time.monotonic(), pace or Pace(None)
    place = open_place(where)
    with _told(f"{checkpoint} could not be copied to {where}"):
        text = (checkpoint / MANIFEST).read_bytes()
        manifest = parse_manifest(text, str(checkpoint / MANIFEST))
        _refuse_home(place, checkpoint)
        place.sweep()
        num_bytes = 0
        if not _is_there(place, manifest.step, text):
            folder = place.begin(manifest.step)
            _copy_files(manifest, LocalPlace(checkpoint.parent), checkpoint.name, place, folder, pace)
            place.commit(folder, manifest.step, text)
            num_bytes = manifest.num_bytes + len(text)
        removed = too_many(place.steps(), manifest.step, keep)
        for step in removed:
            place.remove(step)
    return Copied(manifest.step, where, num_bytes, time.monotonic() - started, removed)


def _refuse_home(place: Place, checkpoint: Path) -> None:
    """The folder of the run's own checkpoints is no second place: sweeping it would remove what is being written."""
    if isinstance(place, LocalPlace) and Path(place.where).resolve() == checkpoint.parent.resolve():
        raise CheckpointError(
            f"checkpoint.mirror leads to {checkpoint.parent}, where the checkpoints of this run are already; give another disk's "
            "folder, or a URL"
        )


def too_many(steps: list[int], newest: int, keep: int) -> list[int]:
    """Which steps go when `keep` stay and `newest` was just copied: first those of a branch that was left, then the oldest."""
    kept = sorted((step for step in steps if step <= newest), reverse=True)
    left = sorted(step for step in steps if step > newest)
    return sorted((kept + left)[max(keep, 1) :])


def checkpoints_at(where: str) -> list[Manifest]:
    """The manifests of the checkpoints in a second place, newest first; one that cannot be read is left out."""
    return look_at(where)[0]


def look_at(where: str) -> tuple[list[Manifest], dict[int, str]]:
    """The same, and by its step why each of the others cannot be read."""
    place = open_place(where)
    found, unreadable = [], {}
    with _told(f"the checkpoints in {where} cannot be listed"):
        for step in place.steps():
            try:
                found.append(_manifest_at(place, step))
            except CheckpointError as error:
                unreadable[step] = str(error)
    return found, unreadable


def fetch_checkpoint(where: str, into: Path, step: int | None = None, *, pace: Pace | None = None) -> Path:
    """Brings a checkpoint back from a second place, verified: the newest, or that of a step; returns its folder.

    The folder is `into`/step-*, for resume_from_checkpoint=PATH. raises CheckpointError
    """
    place, pace, store = open_place(where), pace or Pace(None), CheckpointStore(into)
    with _told(f"no checkpoint could be fetched from {where}"):
        steps = place.steps()
        if not steps or (step is not None and step not in steps):
            there = f"it holds the steps {', '.join(map(str, steps))}" if steps else "it holds none"
            raise CheckpointError(
                f"there is no checkpoint{'' if step is None else f' of step {step}'} in {where}; {there}: give one of them, or another "
                "place"
            )
        wanted = steps[0] if step is None else step
        manifest, text = _manifest_at(place, wanted), _read_bytes(place, f"{_name(wanted)}/{MANIFEST}")
        if store.path(wanted).exists():
            raise CheckpointError(f"{store.path(wanted)} exists already, and is not replaced; give another folder")
        home = LocalPlace(into)
        folder = home.begin(wanted)
        _copy_files(manifest, place, _name(wanted), home, folder, pace)
        home.commit(folder, wanted, text)
    return store.path(wanted)


def _copy_files(manifest: Manifest, source: Place, folder: str, target: Place, new_folder: str, pace: Pace) -> None:
    """Copies the files of a checkpoint from one place to another, each compared with its digest on the way and once it is there."""
    for name in _safe_names(manifest, source.where):
        path, new_path, entry = f"{folder}/{name}", f"{new_folder}/{name}", manifest.files[name]
        with source.read(path) as file, target.write(new_path) as new_file:
            _check(_digest(file, pace, new_file), entry, f"{source.where}/{path}")
        target.flushed(new_path)
        with target.read(new_path) as back:
            _check(_digest(back, pace), entry, f"the copy {target.where}/{new_path}")


def _digest(source: BinaryIO, pace: Pace, target: BinaryIO | None = None) -> str:
    """xxh3-128 of all that a file gives, which goes to `target` on the way."""
    hasher = xxhash.xxh3_128()
    while block := source.read(pace.block_bytes):
        hasher.update(block)
        if target is not None:
            target.write(block)
        pace.moved(len(block))
    return hasher.hexdigest()


def _check(digest: str, entry: dict[str, Any], what: str) -> None:
    if digest != entry["xxh3_128"]:
        raise CheckpointError(
            f"{what} is damaged: its bytes do not match their digest in the manifest; take another checkpoint"
        )


def _is_there(place: Place, step: int, text: bytes) -> bool:
    """Whether this very checkpoint was committed there before; its bytes were read back then."""
    return step in place.steps() and _read_bytes(place, f"{_name(step)}/{MANIFEST}") == text


def _manifest_at(place: Place, step: int) -> Manifest:
    path = f"{_name(step)}/{MANIFEST}"
    return parse_manifest(_read_bytes(place, path), f"{place.where}/{path}")


def _read_bytes(place: Place, path: str) -> bytes:
    with place.read(path) as file:
        return file.read()


def _safe_names(manifest: Manifest, where: str) -> list[str]:
    """The names of a manifest's files; one that leads out of its folder is refused, since a place may be anybody's."""
    for name in manifest.files:
        if not name or "\\" in name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise CheckpointError(
                f"the manifest of step {manifest.step} in {where} names a file {name!r} outside its folder; do not trust that place"
            )
    return sorted(manifest.files)


def _name(step: int) -> str:
    return f"step-{step:08d}"


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Whatever a file system raises becomes one kind of error: each has exceptions of its own."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{what} ({type(error).__name__}: {error}); look whether the place is reachable and has room, or set checkpoint.mirror "
            "to another"
        ) from error
