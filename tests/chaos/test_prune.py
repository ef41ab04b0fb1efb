"""Pruning fails at the n-th file operation, for every n, or runs beside a pin: what must stay stays, and what was promised is so."""

import os
import shutil
import threading

import pytest

from tests.chaos.test_commit import DISK_BROKEN, DISK_FULL, Crash, Faults
from tests.small_checkpoints import commit
from trainer.checkpoint.format.manifest import read_manifest
from trainer.checkpoint.format.retention import Policy
from trainer.checkpoint.format.store import CheckpointStore, folder_bytes, verify
from trainer.checkpoint.inspect.pin import set_pinned
from trainer.errors import CheckpointError


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """The disk is not waited for; nothing here loses power."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def prepare(store):
    """Eight checkpoints, of which the best and a pinned one are old, and two folders set aside; returns the tightest policy that holds."""
    for step in range(1, 9):
        commit(store, step, val_loss=float(step), pinned=step == 3)
    for reason in ("damaged", "abandoned"):
        commit(store, 9).rename(store.folder / f".{reason}-step-00000009")
    return Policy(4, 2, keep_every_steps=4, max_disk_bytes=5 * folder_bytes(store.path(8)))


def sound_steps(store):
    return [entry.step for entry in store.entries() if not verify(entry.path)]


@pytest.mark.parametrize(
    "fault", [pytest.param(DISK_FULL, marks=pytest.mark.long), DISK_BROKEN, Crash()], ids=["full", "broken", "crash"]
)
def test_whatever_operation_of_a_prune_fails_the_protected_stay_and_the_next_one_makes_the_room(tmp_path, fault):
    for n in range(1, 1000):
        store = CheckpointStore(tmp_path / str(n))
        policy = prepare(store)
        with pytest.MonkeyPatch.context() as patch:
            faults = Faults(patch, n, fault)
            try:
                store.prune(policy)
            except (OSError, Crash):
                pass
        assert {8, 3, 1} <= set(sound_steps(store))
        assert all(not entry.problem for entry in store.entries())
        again = CheckpointStore(store.folder)
        again.prune(policy)
        assert sound_steps(again) == [8, 3, 2, 1]
        assert again.num_bytes() + folder_bytes(again.path(8)) <= policy.max_disk_bytes
        assert [path.name for path in again.folder.iterdir() if path.name.startswith(".")] == []
        shutil.rmtree(store.folder)
        if not faults.struck:
            break
    assert n > 20


def test_a_pin_beside_a_prune_is_kept_or_told(tmp_path):
    """Whatever the order of the two, a pin that was confirmed is there, whole; one that was refused is not."""
    outcomes = set()
    for number in range(150):
        store = CheckpointStore(tmp_path / str(number))
        for step in (1, 2, 3):
            commit(store, step)
        barrier, told = threading.Barrier(2), []

        def prune(store=store, barrier=barrier):
            barrier.wait()
            store.prune(Policy(1, 0))

        def pin(store=store, barrier=barrier, told=told, number=number):
            barrier.wait()
            for _ in range(number % 3):
                store.entries()  # come a little later
            try:
                told.append(set_pinned(store.folder, "2", pinned=True))
            except CheckpointError:
                told.append(None)

        threads = [threading.Thread(target=work) for work in (prune, pin)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        there = store.path(2).is_dir()
        assert there == (told[0] is not None)
        assert not there or (read_manifest(store.path(2)).pinned and verify(store.path(2)) == [])
        assert verify(store.path(3)) == []
        assert not store.path(1).exists()
        outcomes.add(there)
        shutil.rmtree(store.folder)
    assert outcomes == {True, False}, "both orders were met"
