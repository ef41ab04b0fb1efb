"""A disk that hangs under a real writer: the training goes on, the end comes, and what is missing is said."""

import os
import signal
import sys
import time

import pytest

from tests.messages import logged, refuses
from tests.small_runs import Small, end_writer
from trainer.checkpoint.save import main_rank, status, writer_client
from trainer.checkpoint.save.writer_client import disk_answers
from trainer.config.schema import CheckpointConfig
from trainer.errors import CheckpointError
from trainer.journal import read_events

WRITER = """
import os, sys, time
from trainer import files
from trainer.checkpoint.format.verified_copy import Pace
from trainer.checkpoint.save import writer
real = files.write_pages
def write_pages(*arguments):
    while os.path.exists({flag!r}):
        time.sleep(0.01)
    for _ in range(20 if os.path.exists({flag!r} + " slowly") else 0):
        time.sleep(0.1)
        arguments[3](0, 0)
    real(*arguments)
files.write_pages = write_pages
def moved(*_):
    time.sleep(0.01 if not os.path.exists({copies!r}) else 1000)
Pace.moved = moved
writer.BEAT_SECONDS = 0.05
writer.main()
"""
"""A writer whose disk hangs as long as one file exists, and whose second place as long as another does."""


@pytest.fixture
def disk(tmp_path):
    """The file whose existence makes the disk hang."""
    return tmp_path / "hangs"


@pytest.fixture
def run(store, monkeypatch, disk, tmp_path, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(
        writer_client,
        "_COMMAND",
        (sys.executable, "-c", WRITER.format(flag=str(disk), copies=str(tmp_path / "copies hang"))),
    )
    monkeypatch.setattr(status, "STILL_SECONDS", 0.4)
    monkeypatch.setattr(writer_client, "HUNG_SECONDS", 1.0)
    small = Small(store, CheckpointConfig(mirror=str(tmp_path / "second")))
    small.step()
    writers, ends = small.checkpointer.writer, time.monotonic() + 60
    while not writers._channel.arrived(0.1) and time.monotonic() < ends:
        pass  # until it is there: its start is not what is timed
    yield small
    disk.unlink(missing_ok=True)
    end_writer(small)


def steps_on_disk(store):
    return [entry.step for entry in store.entries() if not entry.problem]


def events(run, *names):
    return [event for event in read_events(run.folder) if event["event"] in names]


def test_the_training_goes_on_and_saves_are_left_out_counted_and_told(run, store, disk, caplog):
    disk.touch()
    for _ in range(6):
        run.save("every")
        run.step()
    assert steps_on_disk(store) == []
    assert [event["step"] for event in events(run, "skip")] == [3, 4, 6], "the first, the second, the fourth"
    assert "the writer has moved nothing for" in caplog.text
    assert caplog.text.count("does the disk of") == 1
    step, values = run.drawn[-1]
    assert (step, values["checkpoint/skipped_saves"]) == (6, 4.0) and values["checkpoint/worst_lost_work_seconds"] > 0.4
    disk.unlink()
    ends = time.monotonic() + 60
    while (writer := run.checkpointer.writer) and writer.pending() and time.monotonic() < ends:
        run.checkpointer.save_request(0)
        time.sleep(0.01)
    run.save("every")
    run.checkpointer.close()
    assert steps_on_disk(store)[:2] == [7, 2]
    logged(caplog, "writer", "moves")
    assert [event["state"] for event in events(run, "writer")] == ["still", "moves"]


def test_a_slow_disk_that_moves_is_no_hanging_one(run, store, tmp_path):
    (tmp_path / "hangs slowly").touch()
    started = time.monotonic()
    run.save("final")
    assert time.monotonic() - started > 3.5 and steps_on_disk(store) == [1] and run.checkpointer.writer is not None


@pytest.mark.parametrize("reason", ["final", "interrupt"])
def test_a_last_save_is_made_by_the_trainer_where_the_writer_hangs_and_the_disk_answers(
    run, store, disk, caplog, reason
):
    disk.touch()
    run.save("every")
    run.step()
    writer = run.checkpointer.writer._process
    run.save(reason)
    assert steps_on_disk(store) == [2] and writer.poll() == -signal.SIGKILL
    logged(caplog, "training waits", "writer")
    logged(caplog, "step 1", "lost")
    assert [event["step"] for event in events(run, "save_failed")] == [1]
    run.checkpointer.close()
    run.checkpointer.end(wait_for_copies=True)


def test_a_last_save_on_a_disk_that_does_not_answer_is_an_error_that_says_what_is_missing(
    run, store, disk, monkeypatch
):
    monkeypatch.setattr(main_rank, "disk_answers", lambda folder: False)
    run.save("every")
    run.checkpointer.close()
    disk.touch()
    run.step()
    with refuses(CheckpointError, "step 2", "disk", "resume_from_checkpoint=latest"):
        run.save("final")
    assert steps_on_disk(store) == [1]


def test_the_end_waits_for_promised_saves_only_as_long_as_the_writer_moves(run, store, disk, caplog):
    disk.touch()
    run.save("every")
    started = time.monotonic()
    run.checkpointer.close()
    run.checkpointer.end(wait_for_copies=True)
    assert time.monotonic() - started < 20
    assert steps_on_disk(store) == []
    logged(caplog, "step 1", "lost")


def test_the_end_does_not_wait_for_a_snapshot_that_cannot_be_written(run, store, disk, caplog):
    disk.touch()
    run.save("snapshot")
    run.checkpointer.close()
    run.checkpointer.end(wait_for_copies=True)
    assert steps_on_disk(store) == []
    logged(caplog, "writer", "lost")


def test_the_end_does_not_wait_for_a_second_place_that_hangs(run, store, tmp_path, caplog):
    (tmp_path / "copies hang").touch()
    run.save("final")
    run.checkpointer.close()
    run.checkpointer.end(wait_for_copies=True)
    assert steps_on_disk(store) == [1]
    logged(caplog, "copy", "lost")


def test_a_writer_that_does_not_die_is_not_waited_for(run, disk, monkeypatch, caplog):
    monkeypatch.setattr(writer_client, "DEATH_SECONDS", 0.2)
    disk.touch()
    run.save("every")
    writer = run.checkpointer.writer._process
    monkeypatch.setattr(writer, "kill", lambda: None)
    run.checkpointer.close()
    assert f"the writer (process {writer.pid}) does not die before its disk answers" in caplog.text
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait(30)


def test_whether_a_disk_answers_is_tried_by_a_process_that_may_hang(tmp_path, monkeypatch):
    assert disk_answers(tmp_path) and list(tmp_path.iterdir()) == []
    assert disk_answers(tmp_path / "not there"), "a refusal is an answer"
    monkeypatch.setattr(writer_client, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(writer_client, "_PROBE", "import time; time.sleep(60)")
    assert not disk_answers(tmp_path)
