"""The n-th file operation of the writer fails, for every n: the newest checkpoint stays a whole one, old or new, and the next start works."""

import os
import pathlib
import shutil

import pytest

from tests.chaos.test_commit import DISK_BROKEN, DISK_FULL, Crash, Faults, inodes, lose_power
from tests.small_checkpoints import CONFIG, commit, flip, manifest_of, write_files
from tests.small_writers import writer_of
from trainer.checkpoint.format.retention import Policy
from trainer.checkpoint.format.store import CheckpointStore, verify
from trainer.checkpoint.resume.select import resolve
from trainer.checkpoint.save.protocol import mark
from trainer.checkpoint.save.writer import Image, Snapshot

NAMES = {"config.yaml", "model.safetensors", "optimizer.bin"}
PAGES = 4 * 4096


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """The disk is not waited for; what was waited for is written down by Faults, and lost by lose_power where it was not."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class WriterFaults(Faults):
    """Fails the writer's own operations too: a block that is torn in the middle, a small file, opening, cutting, the mark."""

    def __init__(self, monkeypatch, n, fault):
        super().__init__(monkeypatch, n, fault)
        for module, name in ((os, "open"), (os, "ftruncate"), (os, "write"), (pathlib.Path, "touch")):
            monkeypatch.setattr(module, name, self._failing(getattr(module, name), name))
        monkeypatch.setattr(os, "pwrite", self._torn(os.pwrite))
        monkeypatch.setattr(pathlib.Path, "write_bytes", self._torn(pathlib.Path.write_bytes))

    def _torn(self, real):
        def write(target, content, *place):
            torn = self._due()
            written = real(target, content[: len(content) // 8192 * 4096] if torn else content, *place)
            if torn:
                raise self.fault
            return written

        return write


def small_writer(store):
    """A writer without a process or a trainer, with one slot of two files."""
    images = [
        Image("model.safetensors", 0, 5000, 8192, []),
        Image("optimizer.bin", 8192, 4096, 4096, [(0, 4000, [4001, 4050])]),
    ]
    return writer_of(store, policy=Policy(1, 1), slots=1, slot_bytes=PAGES, images=images, pid=os.getppid())


def save(writer, step):
    """What the writer does for one snapshot, from its own start on."""
    writer.sweep()
    writer.slots[0][: 3 * 4096] = bytes([step]) * 3 * 4096
    mark(writer.slots[0], step)
    manifest = manifest_of(step, val_loss=float(step))
    return writer.save(Snapshot(0, manifest, {"config.yaml": CONFIG.encode()}))


def prepare_plain(store):
    for step in (1, 2):
        commit(store, step, val_loss=float(step))


def prepare_leftovers(store):
    """A damaged checkpoint where the new one will be, one half written, and one half removed."""
    prepare_plain(store)
    flip(commit(store, 3) / "optimizer.bin")
    write_files(store.begin(4), 4)
    (store.folder / ".removing-step-00000000").mkdir()
    (store.folder / ".removing-step-00000000" / "x").write_text("x")


def newest_after_a_start(store):
    """The step that the next start continues from, every byte of it right."""
    fresh = CheckpointStore(store.folder)
    fresh.sweep()
    resolution = resolve(fresh, "latest")
    assert verify(resolution.path) == []
    assert resolution.manifest.step <= 2 or resolution.manifest.files.keys() == NAMES
    return resolution.manifest.step


def fail(store, n, fault):
    """One save whose n-th operation fails; returns what the writer answered, None when it is gone, and whether anything failed."""
    writer, known = small_writer(store), inodes(store.folder)
    with pytest.MonkeyPatch.context() as patch:
        faults = WriterFaults(patch, n, fault)
        try:
            answer = save(writer, 3)
        except (OSError, Crash):
            answer = None
    if isinstance(fault, Crash):
        lose_power(store.folder, faults.synced, known)
        writer = small_writer(store)
    return writer, answer, faults.struck


@pytest.mark.parametrize(
    "fault", [DISK_FULL, pytest.param(DISK_BROKEN, marks=pytest.mark.long), Crash()], ids=["full", "broken", "crash"]
)
@pytest.mark.parametrize("prepare", [prepare_plain, prepare_leftovers], ids=["plain", "over-leftovers"])
def test_whatever_operation_of_the_writer_fails_the_newest_checkpoint_is_a_whole_one(tmp_path, fault, prepare):
    found = set()
    for n in range(1, 1000):
        store = CheckpointStore(tmp_path / str(n) / "run")
        prepare(store)
        writer, answer, struck = fail(store, n, fault)
        newest = newest_after_a_start(store)
        assert newest in {2, 3}
        assert newest == 3 or answer is None or answer.failure, "what was said to be saved is there"
        found.add(newest)
        assert save(writer, 4).failure is None, "the same process tries again, or the next one does"
        assert newest_after_a_start(store) == 4
        again = CheckpointStore(store.folder)
        assert {entry.step for entry in again.entries() if not verify(entry.path)} == {1, 4}, (
            "the bounds hold after the next save"
        )
        hidden = [path.name for path in store.folder.iterdir() if path.name.startswith(".")]
        assert all(name.startswith(".damaged-") for name in hidden), hidden
        shutil.rmtree(tmp_path / str(n))
        if not struck:
            break
    assert n > 30 and found == {2, 3}, "both sides of the commit were met"
