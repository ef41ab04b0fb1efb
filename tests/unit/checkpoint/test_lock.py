"""Taking a folder of checkpoints: from nobody, from a living trainer, and from the writer that a dead one left."""

import errno
import fcntl
import threading
import time

import pytest

from tests.unit.test_locks import ELSEWHERE, WITHOUT, beating, gone, in_another_process, record
from trainer import locks
from trainer.checkpoint.lock import LOCK, hold
from trainer.errors import CheckpointError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture
def without_locks(monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(locks, "STILL_SECONDS", 0.4)
    monkeypatch.setattr(locks, "_LOOK_SECONDS", 0.02)


@pytest.mark.parametrize("script", ["", WITHOUT], ids=["flock", "records"])
def test_a_folder_where_a_trainer_lives_is_refused_with_who_it_is(folder, script, request):
    if script:
        request.getfixturevalue("without_locks")
    other, took = in_another_process(script, folder / LOCK)
    try:
        with pytest.raises(CheckpointError, match=rf"another process is writing checkpoints .* \(process {other.pid} on "):
            hold(folder)
    finally:
        other.kill()
        other.wait()
    assert took
    hold(folder).close()


def test_a_trainer_on_another_machine_is_refused_as_long_as_it_beats(folder, without_locks):
    made = record(folder / LOCK, 1, ELSEWHERE)
    with beating(made, ELSEWHERE), pytest.raises(CheckpointError, match=r"\(process 1 on node7\)"):
        hold(folder)
    hold(folder).close()


@pytest.mark.parametrize("left_it", ["killed", "ended"])
def test_a_writer_that_outlives_its_trainer_is_waited_for(folder, without_locks, caplog, left_it):
    caplog.set_level("INFO")
    made = record(folder / LOCK, 1, gone())
    if left_it == "ended":
        locks.release_record(made)
    heir = locks.heir_of(folder / LOCK)
    locks.write_record(heir, locks.process())
    threading.Timer(0.5, lambda: locks.release_record(heir)).start()
    started = time.monotonic()
    hold(folder).close()
    assert time.monotonic() - started >= 0.5
    assert "still committing its newest snapshot; waiting for it" in caplog.text
