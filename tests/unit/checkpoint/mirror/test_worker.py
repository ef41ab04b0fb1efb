"""Copies to a second place where training waits for its saves, without a writer that could make them."""

import threading

import pytest

from tests.messages import logged
from tests.small_runs import Small
from trainer.checkpoint.format.store import CheckpointStore, verify
from trainer.checkpoint.mirror import worker
from trainer.checkpoint.mirror.transfer import look_at
from trainer.config.schema import CheckpointConfig
from trainer.journal import read_events


@pytest.fixture
def copying(store, tmp_path, caplog):
    caplog.set_level("INFO")

    def make(**settings):
        small = Small(store, CheckpointConfig(asynchronous=False, mirror=str(tmp_path / "second"), **settings))
        small.copies = CheckpointStore(tmp_path / "second" / store.folder.name)
        return small

    return make


def saved(run, *reasons):
    for reason in reasons:
        run.step()
        run.save(reason)


def steps(store):
    return [entry.step for entry in store.entries()]


def test_plain_saves_reach_the_second_place_verified_before_a_finished_run_ends(copying, caplog):
    run = copying(mirror_every=2)
    saved(run, "every", "every", "every", "every", "final")
    run.checkpointer.close()
    run.checkpointer.end(wait_for_copies=True)
    assert steps(run.copies)[0] == 5 and verify(run.copies.path(5)) == []
    assert "step 5: copied to" in caplog.text and "nothing is copied" not in caplog.text
    events = [event for event in read_events(run.folder) if event["event"] == "mirror"]
    assert events[-1]["step"] == 5 and events[-1]["bytes"] > 0


def test_without_room_for_a_snapshot_there_are_copies_too(store, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.checkpoint.save.writer_client.free_memory_bytes", lambda: 0)
    run = Small(store, CheckpointConfig(mirror=f"file://{tmp_path}/second"))
    saved(run, "interrupt")
    run.checkpointer.end(wait_for_copies=True)
    assert [manifest.step for manifest in look_at(f"{tmp_path}/second/{store.folder.name}")[0]] == [1]


def test_a_checkpoint_that_is_being_copied_is_not_pruned_and_training_does_not_wait_for_it(copying, store, monkeypatch):
    goes_on, real = threading.Event(), worker.copy_checkpoint
    monkeypatch.setattr(worker, "copy_checkpoint", lambda *words, **more: (goes_on.wait(60), real(*words, **more))[1])
    run = copying()
    saved(run, "every", "every", "every", "every")
    assert 1 in steps(store), "two are kept besides"
    goes_on.set()
    run.checkpointer.end(wait_for_copies=True)
    assert steps(run.copies) == [4, 1]


def test_a_slow_place_keeps_no_more_than_what_is_copied_and_what_is_next(copying, store, monkeypatch):
    goes_on, real = threading.Event(), worker.copy_checkpoint
    monkeypatch.setattr(worker, "copy_checkpoint", lambda *words, **more: (goes_on.wait(60), real(*words, **more))[1])
    run = copying(mirror_every=2)
    saved(run, *["every"] * 12)
    assert steps(store) == [12, 11, 2], "two by the rules, and the one that is being copied"
    goes_on.set()
    run.checkpointer.end(wait_for_copies=True)
    assert steps(run.copies) == [12, 2]


def test_the_bandwidth_is_kept(copying, monkeypatch):
    paced, real = [], worker.copy_checkpoint
    monkeypatch.setattr(
        worker,
        "copy_checkpoint",
        lambda *words, pace, **more: (paced.append(pace._rate), real(*words, pace=pace, **more))[1],
    )
    run = copying(mirror_bytes_per_second=10**9)
    saved(run, "final")
    run.checkpointer.end(wait_for_copies=True)
    assert paced == [10**9]


def test_a_place_that_hangs_is_not_waited_for(copying, store, monkeypatch, caplog):
    monkeypatch.setattr(worker, "HUNG_SECONDS", 0.3)
    goes_on, real = threading.Event(), worker.copy_checkpoint
    monkeypatch.setattr(worker, "copy_checkpoint", lambda *words, **more: (goes_on.wait(60), real(*words, **more))[1])
    run = copying()
    saved(run, "final")
    run.checkpointer.end(wait_for_copies=True)
    goes_on.set()
    assert steps(store) == [1]
    logged(caplog, "hangs")
