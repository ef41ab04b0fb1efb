"""A real writer process: what it commits, what it rescues, and what happens when it dies."""

import os
import signal
import time

import pytest

from tests.small_runs import Small
from trainer.checkpoint.manifest import read_manifest
from trainer.checkpoint.store import CheckpointStore, verify
from trainer.config.schema import CheckpointConfig
from trainer.errors import CheckpointError
from trainer.journal import read_events


@pytest.fixture(autouse=True)
def many_in_one_process(monkeypatch):
    monkeypatch.setattr("trainer.checkpoint.restore.hold", lambda folder: None)


@pytest.fixture
def run(store):
    small = Small(store, CheckpointConfig())
    small.step()
    yield small
    background = small.checkpointer._background
    if background is not None and background._process.poll() is None:
        background._process.kill()
        background._process.wait(30)


def written(run):
    """Waits until everything promised is on the disk."""
    ends = time.monotonic() + 60
    while run.checkpointer._background.pending():
        run.checkpointer._poll()
        assert time.monotonic() < ends
        time.sleep(0.01)


def steps_on_disk(store):
    return [entry.step for entry in store.entries() if not entry.problem]


def left(run):
    """The trainer goes away without a word, and the writer to its end."""
    background = run.checkpointer._background
    background.leave()
    assert background._process.wait(60) == 0


def test_a_save_in_the_background_is_the_checkpoint_that_a_plain_one_is(run, store, tmp_path):
    run.save("budget", val_loss=2.0)
    expected = run.everything()
    run.step()
    written(run)
    assert verify(store.path(1)) == []
    manifest = read_manifest(store.path(1))
    assert (manifest.reason, manifest.loss, manifest.val_loss, manifest.tokens) == ("budget", 1.5, 2.0, 32)
    again = Small(store)
    again.resume()
    assert again.everything() == expected

    other = CheckpointStore(tmp_path / "plain")
    again.store, again.checkpointer._store = other, other
    again.checkpointer._saved_step = None
    again.save("budget", val_loss=2.0)
    assert read_manifest(other.path(1)).files.keys() == manifest.files.keys()
    last = Small(other)
    last.resume()
    assert last.everything() == expected


def test_the_folder_is_what_accelerate_loads(run, store):
    run.save("budget")
    expected = run.everything()
    written(run)
    other = Small(store)
    other.accelerator.load_state(str(store.path(1)))
    assert other.everything() == expected


def test_files_may_be_read_by_everyone_and_the_mark_is_set(run, store):
    run.save("budget")
    written(run)
    assert {file.stat().st_mode & 0o777 for file in store.path(1).iterdir()} == {0o644}
    assert (run.folder / ".saved").exists()


def test_training_is_not_held_while_the_disk_is_written(run, store):
    background = run.checkpointer._background
    os.kill(background._process.pid, signal.SIGSTOP)  # a disk that takes for ever
    started = time.monotonic()
    run.save("budget")
    run.step()
    run.save("snapshot")
    assert time.monotonic() - started < 5.0 and steps_on_disk(store) == []
    os.kill(background._process.pid, signal.SIGCONT)
    written(run)
    assert steps_on_disk(store) == [1]


def test_the_newest_snapshot_in_memory_is_committed_when_the_trainer_is_gone(run, store):
    run.save("budget")
    run.step()
    run.save("snapshot")
    run.step()
    run.save("snapshot")
    expected = run.everything()
    left(run)
    assert steps_on_disk(store) == [3, 1] and read_manifest(store.path(3)).reason == "rescued"
    again = Small(store)
    again.resume()
    assert again.everything() == expected
    assert [event["step"] for event in read_events(run.folder) if event["event"] == "save"] == [1, 3]


def test_a_snapshot_that_was_not_whole_is_not_rescued(run, store):
    run.save("snapshot")
    run.step()
    background = run.checkpointer._background
    slot = background.free_slot()
    background._channel.send({"do": "begin", "slot": slot.number})
    slot.pages.zero_()
    left(run)
    assert steps_on_disk(store) == [1], "the other slot holds an older whole one"


def test_a_slot_that_is_filled_anew_when_the_trainer_dies_is_not_rescued_though_its_writer_has_not_heard_of_it(
    store, monkeypatch
):
    monkeypatch.setattr("trainer.checkpoint.background.slots_that_fit", lambda *_: 1)
    run = Small(store, CheckpointConfig())
    run.step()
    run.save("snapshot")
    run.step()
    background = run.checkpointer._background
    monkeypatch.setattr(background._channel, "send", lambda message: None)  # the trainer dies before it is sent
    background._snapshots.copy(background.free_slot(), 2)
    left(run)
    assert steps_on_disk(store) == [], "it would have the weights of step 2 and the manifest of step 1"


def test_what_is_only_in_memory_goes_when_the_run_ends(run, store):
    run.save("budget")
    run.step()
    run.save("snapshot")
    run.checkpointer.close()
    assert steps_on_disk(store) == [1] and run.checkpointer._background._process.returncode == 0


def test_a_final_save_is_on_the_disk_at_once(run, store):
    run.save("budget")
    run.step()
    run.save("final")
    assert steps_on_disk(store)[0] == 2


def test_signals_that_end_a_trainer_do_not_end_its_writer(run, store):
    pid = run.checkpointer._background._process.pid
    written(run)
    time.sleep(0.5)  # until it listens to nothing but its socket
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(pid, number)
    run.save("final")
    assert run.checkpointer._background._process.pid == pid and steps_on_disk(store) == [1]


def test_a_writer_that_dies_is_replaced_and_nothing_that_was_promised_is_lost(run, store, caplog):
    run.save("budget")
    os.kill(run.checkpointer._background._process.pid, signal.SIGKILL)
    run.step()
    run.save("snapshot")
    written(run)
    assert steps_on_disk(store) == [1] and "another takes its place" in caplog.text
    left(run)
    assert steps_on_disk(store) == [2, 1]


def test_writers_that_die_in_a_row_are_done_without(run, store, caplog, monkeypatch):
    monkeypatch.setattr("trainer.checkpoint.background._COMMAND", ("-c", "raise SystemExit(7)"))
    os.kill(run.checkpointer._background._process.pid, signal.SIGKILL)
    run.save("final")
    assert steps_on_disk(store) == [1] and verify(store.path(1)) == []
    assert "3 writers in a row died, the last with code 7" in caplog.text
    run.step()
    run.save("periodic")
    assert steps_on_disk(store) == [2, 1]


def test_a_failed_write_is_told_and_the_next_succeeds(run, store, caplog):
    (run.folder / "metrics.jsonl").unlink()  # what must be durable first is not there
    run.save("budget")
    written(run)
    assert steps_on_disk(store) == [] and "training goes on, and the next save tries again (1 of 3)" in caplog.text
    assert not list(store.folder.glob(".staging-*"))
    (run.folder / "metrics.jsonl").touch()
    run.step()
    run.save("budget")
    written(run)
    assert steps_on_disk(store) == [2]
    assert [event["event"] for event in read_events(run.folder)] == ["save_failed", "save"]


@pytest.mark.parametrize("reason", ["final", "interrupt"])
def test_a_last_write_that_fails_is_an_error(run, reason):
    (run.folder / "metrics.jsonl").unlink()
    with pytest.raises(CheckpointError, match="could not be written .*FileNotFoundError.*the checkpoints before it are whole"):
        run.save(reason)


def test_a_promised_snapshot_is_never_overwritten(run, store):
    os.kill(run.checkpointer._background._process.pid, signal.SIGSTOP)
    for reason in ("every", "best", "snapshot", "budget"):
        run.save(reason)
        run.step()
    os.kill(run.checkpointer._background._process.pid, signal.SIGCONT)
    written(run)
    assert steps_on_disk(store) == [2, 1]
    assert [(event["step"], event["reason"]) for event in read_events(run.folder) if event["event"] == "skip"] == [
        (3, "snapshot"),
        (4, "budget"),
    ]


def test_without_room_for_a_snapshot_saves_are_plain_and_that_is_said(store, monkeypatch, caplog):
    monkeypatch.setattr("trainer.checkpoint.background.free_memory_bytes", lambda: 0)
    small = Small(store, CheckpointConfig())
    assert small.checkpointer._background is None and "has no room in the 0 bytes of free memory" in caplog.text
    small.step()
    small.save("budget")
    assert steps_on_disk(store) == [1]


def test_the_first_snapshots_make_the_cadence_say_its_interval(run, caplog):
    caplog.set_level("INFO")
    run.save("budget")
    written(run)
    assert "a checkpoint every " in caplog.text and "a machine crash loses" in caplog.text


def test_every_second_checkpoint_is_copied_to_a_second_place_and_the_end_waits_for_it(store, tmp_path, caplog):
    caplog.set_level("INFO")
    small = Small(store, CheckpointConfig(second_place=str(tmp_path / "second"), second_place_every=2, second_place_keep=1))
    for _ in range(4):
        small.step()
        small.save("every")
        written(small)
    small.checkpointer.close()
    copies = CheckpointStore(tmp_path / "second" / store.folder.name)
    assert steps_on_disk(copies) == [4] and verify(copies.path(4)) == []
    assert "step 4: copied to " in caplog.text
    copied = [event for event in read_events(small.folder) if event["event"] == "second_place"]
    assert copied[-1]["step"] == 4 and copied[-1]["bytes"] > 0


def test_a_second_place_that_fails_is_told_and_costs_nothing_else(store, tmp_path, caplog):
    (tmp_path / "file").write_text("no folder")
    small = Small(store, CheckpointConfig(second_place=str(tmp_path / "file")))
    small.step()
    small.save("final")
    small.checkpointer.close()
    assert steps_on_disk(store) == [1] and "second place: " in caplog.text and "the next copy tries again" in caplog.text
