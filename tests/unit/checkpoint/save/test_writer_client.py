"""A real writer process: what it commits, what it rescues, and what happens when it dies."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.messages import logged, refuses
from tests.small_runs import Small, end_writer
from trainer.checkpoint.format.manifest import read_manifest
from trainer.checkpoint.format.store import CheckpointStore, folder_bytes, verify
from trainer.checkpoint.inspect.pin import set_pinned
from trainer.checkpoint.save.schedule import SaveSchedule
from trainer.config.schema import CheckpointConfig
from trainer.errors import CheckpointError
from trainer.journal import read_events
from trainer.step_result import SaveRequest


@pytest.fixture
def run(store):
    small = Small(store, CheckpointConfig())
    small.step()
    yield small
    end_writer(small)


def written(run):
    """Waits until everything promised is on the disk."""
    run.checkpointer.close()
    writer = run.checkpointer.writer
    assert writer is None or not writer.pending()


def steps_on_disk(store):
    return [entry.step for entry in store.entries() if not entry.problem]


def ignores(pid, number):
    """Whether a process ignores a signal."""
    lines = Path("/proc", str(pid), "status").read_text().splitlines()
    return bool(int(next(line for line in lines if line.startswith("SigIgn")).split()[1], 16) >> (number - 1) & 1)


def left(run):
    """The trainer goes away without a word, and the writer to its end."""
    writer = run.checkpointer.writer
    writer._channel.close()
    assert writer._process.wait(60) == 0


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
    again.blocks_into(other)
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
    background = run.checkpointer.writer
    os.kill(background.pid, signal.SIGSTOP)  # a disk that takes for ever
    started = time.monotonic()
    run.save("budget")
    run.step()
    run.save("snapshot")
    assert time.monotonic() - started < 5.0 and steps_on_disk(store) == []
    os.kill(background.pid, signal.SIGCONT)
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
    background = run.checkpointer.writer
    slot = background.free_slot()
    background._channel.send({"do": "begin", "slot": slot.number})
    slot.pages.zero_()
    left(run)
    assert steps_on_disk(store) == [1], "the other slot holds an older whole one"


def test_a_slot_that_is_filled_anew_when_the_trainer_dies_is_not_rescued_though_its_writer_has_not_heard_of_it(
    store, monkeypatch
):
    monkeypatch.setattr("trainer.checkpoint.save.writer_client.slots_that_fit", lambda *_: 1)
    run = Small(store, CheckpointConfig())
    run.step()
    run.save("snapshot")
    run.step()
    background = run.checkpointer.writer
    monkeypatch.setattr(background._channel, "send", lambda message: None)  # the trainer dies before it is sent
    background._snapshots.copy(background.free_slot(), 2)
    left(run)
    assert steps_on_disk(store) == [], "it would have the weights of step 2 and the manifest of step 1"


def test_the_newest_snapshot_in_memory_is_committed_when_the_run_ends_without_a_last_save(run, store):
    """As after a signal at a step whose gradient was no number, or when the run has diverged."""
    run.save("budget")
    run.step()
    run.save("snapshot")
    run.checkpointer.close()
    assert steps_on_disk(store) == [1]
    run.checkpointer.end(wait_for_copies=False)
    assert steps_on_disk(store) == [2, 1] and run.checkpointer.writer.exit_code == 0


def test_nothing_is_committed_at_the_end_that_is_older_than_the_last_save(run, store):
    run.save("snapshot")
    run.step()
    run.save("final")
    run.checkpointer.close()
    run.checkpointer.end(wait_for_copies=False)
    assert steps_on_disk(store) == [2]


def test_a_wish_that_was_heard_and_not_granted_is_made_again(run, monkeypatch):
    """Weights in doubt are not saved; the next step asks anew."""
    monkeypatch.setattr(SaveSchedule, "write_due", lambda *_: "budget")
    assert run.checkpointer.save_request(0) == SaveRequest.WRITE
    assert run.checkpointer.save_request(0) == SaveRequest.NONE
    run.checkpointer.acknowledge()
    assert run.checkpointer.save_request(0) == SaveRequest.WRITE


def test_a_writer_that_was_stopped_is_replaced_while_the_end_waits_for_it(run, store, monkeypatch, caplog):
    monkeypatch.setattr("trainer.checkpoint.save.writer_client.SILENCE_SECONDS", 2.0)
    stopped = run.checkpointer.writer.pid
    os.kill(stopped, signal.SIGSTOP)
    run.save("final")
    assert steps_on_disk(store) == [1]
    logged(caplog, "writer", "seconds")
    assert run.checkpointer.writer.pid != stopped
    assert {"state": "died", "code": -9}.items() <= [e for e in read_events(run.folder) if e["event"] == "writer"][
        0
    ].items()


class StillCopying:
    """A GPU's event of copies that have not arrived."""

    def query(self) -> bool:
        return False

    def synchronize(self) -> None:
        pass


def test_a_slot_whose_copies_are_under_way_is_not_free(run):
    background = run.checkpointer.writer
    run.save("every")
    first = next(slot for slot in background._snapshots.slots if slot.step == 1)
    written(run)
    held = background._held.pop(first.number)
    first.copied = StillCopying()
    background._arriving.append((first, held))
    for _ in range(3):
        assert background.free_slot() is not first
    first.copied = None
    background.advance()
    assert not background._arriving


@pytest.mark.parametrize("times", [1, pytest.param(3, marks=pytest.mark.long)])
def test_what_the_trainer_said_last_is_heard_by_a_writer_that_was_stopped(store, times):
    """The trainer promised a step and was killed while its writer stood still."""
    script = f"""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).resolve().parents[4])!r})
from tests.small_runs import Small, end_writer
from trainer.checkpoint.format.store import CheckpointStore
from trainer.config.schema import CheckpointConfig
run = Small(CheckpointStore(Path({str(store.folder)!r})), CheckpointConfig())
run.step(); run.save("every"); run.checkpointer.close()
writer = run.checkpointer.writer.pid
os.kill(writer, signal.SIGSTOP)
run.step(); run.save("every")
print(writer, flush=True)
import time; time.sleep(0.3)
os.kill(os.getpid(), signal.SIGKILL)
"""
    for _ in range(times):
        # The writer shares the standard error, and would keep a pipe open.
        ended = subprocess.run(
            [sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=120,
            check=False,
        )
        assert ended.returncode == -signal.SIGKILL
        os.kill(writer := int(ended.stdout), signal.SIGCONT)
        ends = time.monotonic() + 60
        while Path(f"/proc/{writer}").exists() and time.monotonic() < ends:
            time.sleep(0.05)
        assert steps_on_disk(store) == [2, 1]
        shutil.rmtree(store.folder)


def test_a_bound_is_kept_before_a_write_and_a_pin_that_leaves_no_room_is_a_counted_failure(store, caplog):
    small = Small(store, CheckpointConfig(max_disk_bytes=10**9))
    small.step()
    small.save("every")
    written(small)
    one = folder_bytes(store.path(1))
    background = small.checkpointer.writer
    os.kill(background.pid, signal.SIGKILL)
    background._hello["plan"]["policy"]["max_disk_bytes"] = (
        3 * one - one // 4
    )  # there is no room for two beside one in flight
    set_pinned(store.folder, "1", pinned=True)
    small.step()
    small.save("every")
    written(small)
    assert steps_on_disk(store) == [2, 1], "one and one in flight"
    set_pinned(store.folder, "2", pinned=True)
    small.step()
    small.save("every")
    written(small)
    assert steps_on_disk(store) == [2, 1] and "max_disk_bytes" in caplog.text
    logged(caplog, "training goes on")


def test_a_final_save_is_on_the_disk_at_once(run, store):
    run.save("budget")
    run.step()
    run.save("final")
    assert steps_on_disk(store)[0] == 2


def test_signals_that_end_a_trainer_do_not_end_its_writer(run, store):
    pid = run.checkpointer.writer.pid
    written(run)
    while not ignores(pid, signal.SIGHUP):  # it listens to nothing but its socket then
        time.sleep(0.01)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(pid, number)
    run.save("final")
    assert run.checkpointer.writer.pid == pid and steps_on_disk(store) == [1]


def test_a_writer_that_dies_is_replaced_and_nothing_that_was_promised_is_lost(run, store, caplog):
    run.save("budget")
    os.kill(run.checkpointer.writer.pid, signal.SIGKILL)
    run.step()
    run.save("snapshot")
    written(run)
    assert steps_on_disk(store) == [1]
    logged(caplog, "writer", "died")
    left(run)
    assert steps_on_disk(store) == [2, 1]


def test_writers_that_die_in_a_row_are_done_without(run, store, caplog, monkeypatch):
    monkeypatch.setattr("trainer.checkpoint.save.writer_client._COMMAND", (sys.executable, "-c", "raise SystemExit(7)"))
    os.kill(run.checkpointer.writer.pid, signal.SIGKILL)
    run.save("every")
    written(run)
    run.step()
    run.save("every")
    assert 2 in steps_on_disk(store) and verify(store.path(2)) == []
    logged(caplog, "3 writers", "code 7")
    assert run.checkpointer._main.status.schedule.write_due(time.monotonic() + 10_000), (
        "saves by budget go on without a writer"
    )
    run.step()
    run.save("final")
    assert steps_on_disk(store)[0] == 3


def test_a_failed_write_is_told_and_the_next_succeeds(run, store, caplog):
    (run.folder / "metrics.jsonl").unlink()  # what must be durable first is not there
    run.save("budget")
    written(run)
    assert steps_on_disk(store) == []
    logged(caplog, "training goes on", "1 of 3")
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
    with refuses(CheckpointError, "FileNotFoundError", "resume_from_checkpoint=latest"):
        run.save(reason)


def test_a_promised_snapshot_is_never_overwritten(run, store):
    os.kill(run.checkpointer.writer.pid, signal.SIGSTOP)
    for reason in ("every", "best", "snapshot", "budget"):
        run.save(reason)
        run.step()
    os.kill(run.checkpointer.writer.pid, signal.SIGCONT)
    written(run)
    assert steps_on_disk(store) == [2, 1]
    assert [(event["step"], event["reason"]) for event in read_events(run.folder) if event["event"] == "skip"] == [
        (4, "budget")
    ]


def test_without_room_for_a_snapshot_saves_are_plain_and_that_is_said(store, monkeypatch, caplog):
    monkeypatch.setattr("trainer.checkpoint.save.writer_client.free_memory_bytes", lambda: 0)
    small = Small(store, CheckpointConfig())
    assert small.checkpointer.writer is None
    logged(caplog, "0 bytes", "memory")
    small.step()
    small.save("budget")
    assert steps_on_disk(store) == [1]


def test_the_first_snapshots_make_the_cadence_say_its_interval(run, caplog):
    caplog.set_level("INFO")
    run.save("budget")
    written(run)
    assert "a checkpoint every " in caplog.text


def test_every_second_checkpoint_is_copied_to_a_second_place_and_the_end_waits_for_it(store, tmp_path, caplog):
    caplog.set_level("INFO")
    small = Small(store, CheckpointConfig(mirror=str(tmp_path / "second"), mirror_every=2, mirror_keep=1))
    for _ in range(4):
        small.step()
        small.save("every")
        written(small)
    small.checkpointer.close()
    small.checkpointer.end(wait_for_copies=True)
    copies = CheckpointStore(tmp_path / "second" / store.folder.name)
    assert steps_on_disk(copies) == [4] and verify(copies.path(4)) == []
    logged(caplog, "step 4", "copied")
    copied = [event for event in read_events(small.folder) if event["event"] == "mirror"]
    assert copied[-1]["step"] == 4 and copied[-1]["bytes"] > 0


def test_a_second_place_that_fails_is_told_and_costs_nothing_else(store, tmp_path, caplog):
    (tmp_path / "file").write_text("no folder")
    small = Small(store, CheckpointConfig(mirror=str(tmp_path / "file")))
    small.step()
    small.save("final")
    small.checkpointer.end(wait_for_copies=True)
    assert steps_on_disk(store) == [1] and "mirror: " in caplog.text and "the next copy tries again" in caplog.text


def test_no_snapshot_is_wished_for_while_it_would_go_over_the_newest(run, monkeypatch):
    """One slot is being written, and the other holds the newest whole snapshot: a death during the copy would lose both its steps."""
    monkeypatch.setattr(SaveSchedule, "snapshot_due", lambda *_: True)
    monkeypatch.setattr(SaveSchedule, "write_due", lambda *_: None)
    os.kill(run.checkpointer.writer.pid, signal.SIGSTOP)
    run.save("budget")
    assert run.checkpointer.save_request(0) == SaveRequest.NONE
    os.kill(run.checkpointer.writer.pid, signal.SIGCONT)
    written(run)
    assert run.checkpointer.save_request(0) == SaveRequest.SNAPSHOT


def test_a_relative_second_place_is_meant_from_the_project(project, store):
    small = Small(store, CheckpointConfig(mirror="elsewhere"))
    small.step()
    small.save("final")
    small.checkpointer.end(wait_for_copies=True)
    assert steps_on_disk(CheckpointStore(project / "elsewhere" / store.folder.name)) == [1]


def spoil(run):
    """The weights of a diverged run."""
    with torch.no_grad():
        next(run.model.parameters())[1, 2] = float("nan")


def test_weights_that_are_not_finite_make_no_checkpoint_and_training_goes_on(run, store):
    run.save("budget")
    run.step()
    spoil(run)
    run.save("budget")
    run.step()
    written(run)
    assert steps_on_disk(store) == [1] and (store.folder / "latest").resolve() == store.path(1)
    told = [(event["event"], event["step"], event.get("tensor")) for event in read_events(run.folder)]
    assert told == [("save", 1, None), ("not_saved", 2, "weight")]
    assert not list(store.folder.glob(".staging-*")) and run.checkpointer.save_request(0) != SaveRequest.GIVE_UP
    assert run.checkpointer.save("final", loss=None, val_loss=None) == "weight"
    assert steps_on_disk(store) == [1]


def test_a_moment_that_is_not_finite_is_named(run, store):
    state = next(iter(run.optimizer.state.values()))
    state["exp_avg_sq"][0, 0] = float("-inf")
    assert run.checkpointer.save("final", loss=None, val_loss=None) == "exp_avg_sq of weight"
    assert steps_on_disk(store) == []


def test_of_two_snapshots_the_newer_of_which_is_not_finite_the_older_is_rescued(run, store):
    run.save("snapshot")
    expected = run.everything()
    run.step()
    spoil(run)
    run.save("snapshot")
    left(run)
    assert steps_on_disk(store) == [1] and read_manifest(store.path(1)).reason == "rescued"
    assert [event["event"] for event in read_events(run.folder)] == ["not_saved", "save"]
    again = Small(store)
    again.resume()
    assert again.everything() == expected


def test_a_diverged_run_leaves_no_checkpoint_from_after_it_went_wrong(run, store):
    for _ in range(1, 5):
        run.save("budget")
        written(run)
        run.step()
    run.save("snapshot")
    run.checkpointer.leave_diverged(4)
    run.checkpointer.end(wait_for_copies=False)
    assert steps_on_disk(store) == [3] and (store.folder / "latest").resolve() == store.path(3)
    assert (store.folder / ".diverged-step-00000004").is_dir()
    assert [(e["step"], e["name"], e["reason"]) for e in read_events(run.folder) if e["event"] == "set_aside"] == [
        (4, ".diverged-step-00000004", "diverged")
    ]
