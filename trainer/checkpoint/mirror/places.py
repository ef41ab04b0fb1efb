"""Where copies of committed checkpoints go: another disk's folder, or any URL that fsspec knows.

    PLACE/step-00001500/   the same files under the same names; the manifest is written last there too, so without it nothing is there

A folder is written under a staging name and renamed, as at home; an object store has no rename, and the manifest alone commits.
"""

import posixpath
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from trainer import files
from trainer.checkpoint.format.manifest import MANIFEST, folder_name
from trainer.checkpoint.format.store import CheckpointStore
from trainer.checkpoint.format.verified_copy import DiskFiles, Files
from trainer.errors import CheckpointError


class Place(Files, Protocol):
    """What a mirror can do with the files of checkpoints; paths are relative to it, with `/`."""

    def steps(self) -> list[int]:
        """Steps of all checkpoints there that have a manifest, newest first."""

    def folders(self) -> list[str]:
        """Names of the folders there that are no checkpoints: those of runs, where several share a place."""

    def sweep(self) -> None:
        """Removes what interrupted copies left."""

    def begin(self, step: int) -> str:
        """Makes way for a new copy of this step; returns the folder to write its files into."""

    def commit(self, folder: str, step: int, manifest: bytes) -> None:
        """Makes the files of `folder` the checkpoint of this step, the manifest last."""

    def remove(self, step: int) -> None: ...


class LocalPlace(DiskFiles):
    """A folder on a disk: staging, fsync, rename, as at home."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._store = CheckpointStore(folder)

    def steps(self) -> list[int]:
        return [entry.number for entry in self._store.entries() if (entry.path / MANIFEST).is_file()]

    def folders(self) -> list[str]:
        there = self.folder.iterdir() if self.folder.is_dir() else ()
        return [path.name for path in there if path.is_dir() and not path.name.startswith((".", "step-"))]

    def sweep(self) -> None:
        self._store.sweep()

    def begin(self, step: int) -> str:
        return self._store.begin(step).name

    def commit(self, folder: str, step: int, manifest: bytes) -> None:
        (self.folder / folder / MANIFEST).write_bytes(manifest)
        if self._store.path(step).exists():  # of another branch, or damaged: its successor is whole by now
            files.remove_folder(self._store.path(step))
        files.commit_folder(self.folder / folder, self._store.path(step))

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
        return {step for step, name in steps.items() if name == folder_name(step)}

    def folders(self) -> list[str]:
        there = [name for name in self._names() if not name.startswith((".", "step-"))]
        return [name for name in there if self._system.isdir(self._path(name))]

    def steps(self) -> list[int]:
        found = [step for step in self._folders() if self._system.exists(self._path(f"{folder_name(step)}/{MANIFEST}"))]
        return sorted(found, reverse=True)

    def sweep(self) -> None:
        for step in self._folders() - set(self.steps()):
            self.remove(step)

    def begin(self, step: int) -> str:
        if step in self._folders():
            self.remove(step)
        self._system.makedirs(self._path(folder_name(step)), exist_ok=True)
        return folder_name(step)

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
        manifest = self._path(f"{folder_name(step)}/{MANIFEST}")
        if self._system.exists(manifest):
            self._system.rm_file(manifest)  # first: what is half removed is not there
        self._system.rm(self._path(folder_name(step)), recursive=True)


def open_place(where: str) -> Place:
    """The mirror at a path or URL; a `file://` URL is a folder like any other. CheckpointError when fsspec cannot open it."""
    for scheme in ("file://", "local://"):
        if where.startswith(scheme):
            return LocalPlace(Path(where.removeprefix(scheme)))
    if "://" not in where:
        return LocalPlace(Path(where))
    with place_errors(f"the mirror {where} cannot be opened"):
        return RemotePlace(where)


def place_of_run(mirror: str, name: str) -> str:
    """Where one run's copies are inside checkpoint.mirror, which several runs may share."""
    return f"{mirror.rstrip('/')}/{name}"


@contextmanager
def place_errors(what: str) -> Iterator[None]:
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
