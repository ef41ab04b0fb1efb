"""The n-th file operation of a save fails, for every n: the newest checkpoint stays a whole one, old or new."""

import errno
import os
import pathlib
import shutil
import stat

import pytest

from tests.messages import says
from tests.small_checkpoints import NAMES, commit, flip, manifest_of, write_files
from trainer import files
from trainer.checkpoint.format.manifest import MANIFEST, describe_files, read_manifest
from trainer.checkpoint.format.retention import Policy
from trainer.checkpoint.format.store import CheckpointStore, verify
from trainer.checkpoint.resume.select import resolve
from trainer.errors import CheckpointError

POLICY = Policy(keep_last=1, keep_best=1)

SYSTEM = [(os, name) for name in ("fsync", "replace", "rename", "mkdir", "unlink", "rmdir", "symlink")] + [
    (shutil, "rmtree")
]
OWN = [
    (files, name)
    for name in (
        "fsync_file",
        "fsync_folder",
        "fsync_open_file",
        "write_atomic",
        "move_folder",
        "commit_folder",
        "remove_folder",
        "set_aside",
        "point_symlink",
        "truncate_file",
        "append_lines",
    )
]
DISK_FULL, DISK_BROKEN = OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EIO, "Input/output error")


class Crash(BaseException):
    """The process is gone: nothing that it would have done after this is done."""


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """The disk is not waited for: what was waited for is written down by Faults, and lost by lose_power where it was not."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Faults:
    """Counts file operations and fails the n-th; after a crash every later one fails as well."""

    def __init__(self, monkeypatch, n, fault):
        self.count, self.n, self.fault = 0, n, fault
        self.synced = set()
        for module, name in SYSTEM + OWN:
            monkeypatch.setattr(module, name, self._failing(getattr(module, name), name))
        monkeypatch.setattr(pathlib.Path, "write_text", self._torn_write())

    @property
    def struck(self):
        return self.count >= self.n

    def _due(self):
        self.count += 1
        return self.count == self.n or (self.count > self.n and isinstance(self.fault, Crash))

    def _failing(self, real, name):
        def operation(*arguments, **keywords):
            if self._due():
                raise self.fault
            if name == "fsync":
                self.synced.add(os.fstat(arguments[0]).st_ino)
            return real(*arguments, **keywords)

        return operation

    def _torn_write(self):
        def write_text(path, text, **_keywords):
            torn = self._due()
            with open(path, "w", encoding="utf-8") as file:
                file.write(text[: len(text) // 2] if torn else text)
            if torn:
                raise self.fault

        return write_text


def lose_power(folder, synced, known):
    """What was never waited for is gone: half of every new file that was not fsynced."""
    for path in folder.rglob("*"):
        facts = path.lstat()
        if stat.S_ISREG(facts.st_mode) and facts.st_ino not in synced | known:
            os.truncate(path, facts.st_size // 2)


def inodes(folder):
    return {path.stat().st_ino for path in folder.rglob("*") if path.is_file()}


def whole_save(store, step):
    """begin, write, commit, prune, links: what a save does to the disk."""
    commit(store, step, val_loss=float(step))
    store.prune(POLICY)
    store.point_links()


def damaged_save(store, step):
    """The same over a damaged checkpoint of the same step, after a sweep of leftovers."""
    store.sweep()
    whole_save(store, step)


def prepare_plain(store):
    for step in (1, 2):
        commit(store, step, val_loss=float(step))
    return 2


def prepare_damaged(store):
    prepare_plain(store)
    flip(commit(store, 3) / "optimizer.bin")
    write_files(store.begin(4), 4)
    (store.folder / ".removing-step-00000000").mkdir()
    (store.folder / ".removing-step-00000000" / "x").write_text("x")
    return 2


def check_newest(store, allowed):
    """A fresh start finds one of the allowed steps, every byte of it right, and passes over nothing it should not."""
    fresh = CheckpointStore(store.folder)
    fresh.sweep()
    resolution = resolve(fresh, "latest")
    assert resolution.manifest.step in allowed
    assert verify(resolution.path) == []
    assert sorted(read_manifest(resolution.path).files) == sorted(NAMES)
    return resolution.manifest.step


@pytest.mark.parametrize("fault", [DISK_FULL, DISK_BROKEN, Crash()], ids=["full", "broken", "crash"])
@pytest.mark.parametrize(
    ("prepare", "save"),
    [(prepare_plain, whole_save), (prepare_damaged, damaged_save)],
    ids=["plain", "over-a-damaged-one"],
)
def test_whatever_operation_fails_the_newest_checkpoint_is_a_whole_one(tmp_path, fault, prepare, save):
    outcomes = set()
    for n in range(1, 1000):
        store = CheckpointStore(tmp_path / str(n))
        old = prepare(store)
        known = inodes(store.folder)
        with pytest.MonkeyPatch.context() as patch:
            faults = Faults(patch, n, fault)
            patch.setattr(os, "getpid", lambda: 77777)  # the next start is another process
            try:
                save(store, 3)
            except (OSError, Crash):
                pass
        if isinstance(fault, Crash):
            lose_power(store.folder, faults.synced, known)
        found = check_newest(store, {old, 3})
        outcomes.add(found)
        save(store, 4)  # the same process tries again, or the next one does
        assert check_newest(store, {4}) == 4
        again = CheckpointStore(store.folder)
        kept = {entry.step for entry in again.entries() if not verify(entry.path)}
        assert kept == {1, 4}, "the bounds hold after the next save"
        hidden = [path.name for path in store.folder.iterdir() if path.name.startswith(".")]
        assert all(name.startswith(".damaged-") for name in hidden), hidden
        shutil.rmtree(store.folder)
        if not faults.struck:
            break
    assert n > 30 and outcomes == {old, 3}, "both sides of the commit were met"


@pytest.mark.parametrize("name", [*NAMES, MANIFEST])
def test_every_flipped_byte_is_found(store, name):
    commit(store, 1)
    path = commit(store, 2)
    sound = (path / name).read_bytes()
    for position in range(0, len(sound), 5):
        for bits in (0x01, 0xFF):
            flip(path / name, position, bits)
            assert verify(path), f"byte {position} of {name}"
            (path / name).write_bytes(sound)
    assert verify(path) == []


def test_a_flipped_bit_that_is_not_found_in_a_manifest_changed_nothing(store):
    path = commit(store, 1)
    sound, manifest = (path / MANIFEST).read_bytes(), read_manifest(path)
    for position in range(0, len(sound), 9):
        for bit in range(8):
            flip(path / MANIFEST, position, 1 << bit)
            try:
                assert read_manifest(path) == manifest
            except CheckpointError:
                pass
            (path / MANIFEST).write_bytes(sound)


def cut(path):
    path.write_bytes(path.read_bytes()[:-2])


def lengthen(path):
    path.write_bytes(path.read_bytes() + b"\0")


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [flip, cut, lengthen, empty, pathlib.Path.unlink])
@pytest.mark.parametrize("name", [*NAMES, MANIFEST])
def test_the_older_checkpoint_is_taken_with_the_reason_when_a_file_of_the_newest_is_harmed(store, name, harm):
    commit(store, 1)
    newest = commit(store, 2)
    harm(newest / name)
    problems = verify(newest)
    resolution = resolve(store, "latest")
    assert problems
    assert resolution.path == store.path(1)
    assert resolution.refused == {newest: "; ".join(problems)}
    assert name in resolution.refused[newest]


def test_a_file_too_many_is_found(store):
    commit(store, 1)
    (commit(store, 2) / "pytorch_model.bin").write_text("x")
    [(path, problem)] = resolve(store, "latest").refused.items()
    assert path == store.path(2)
    says(problem, "pytorch_model.bin")


def test_files_that_changed_places_are_found(store):
    commit(store, 1)
    newest = store.begin(2)
    for name in NAMES:
        (newest / name).write_text(f"{name}"[:5] * 4)
    newest = store.commit(newest, manifest_of(2, files=describe_files(newest)))
    a, b = newest / "model.safetensors", newest / "optimizer.bin"
    a.rename(newest / "c"), b.rename(a), (newest / "c").rename(b)
    assert len(verify(newest)) == 2
    assert resolve(store, "latest").path == store.path(1)


def test_a_manifest_of_another_checkpoint_is_found(store):
    older, newest = commit(store, 1), commit(store, 2)
    shutil.copy(older / MANIFEST, newest / MANIFEST)
    assert resolve(store, "latest").path == store.path(1)
    shutil.copytree(older, store.path(3))
    says(resolve(store, "latest").refused[store.path(3)], "step 1", 3)
