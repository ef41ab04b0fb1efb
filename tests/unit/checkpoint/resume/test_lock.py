"""Taking a folder of checkpoints: from nobody, from a living trainer, and from the writer that a dead one left."""

import errno
import fcntl
import threading
import time

import pytest

from tests.messages import logged, refuses
from tests.unit.test_locks import ELSEWHERE, WITHOUT, beating, gone, in_another_process, record
from trainer import lease
from trainer.checkpoint.resume.lock import LOCK, lock_checkpoints
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
    monkeypatch.setattr(lease, "STILL_SECONDS", 0.4)
    monkeypatch.setattr(lease, "POLL_SECONDS", 0.02)


@pytest.mark.parametrize("script", ["", WITHOUT], ids=["flock", "records"])
def test_a_folder_where_a_trainer_lives_is_refused_with_who_it_is(folder, script, request):
    if script:
        request.getfixturevalue("without_locks")
    other, took = in_another_process(script, folder / LOCK)
    try:
        with refuses(CheckpointError, str(folder), f"process {other.pid}"):
            lock_checkpoints(folder)
    finally:
        other.kill()
        other.wait()
    assert took
    lock_checkpoints(folder).close()


def test_a_trainer_on_another_machine_is_refused_as_long_as_it_beats(folder, without_locks):
    made = record(folder / LOCK, 1, ELSEWHERE)
    with beating(made, ELSEWHERE), refuses(CheckpointError, "process 1 on node7"):
        lock_checkpoints(folder)
    lock_checkpoints(folder).close()


@pytest.mark.parametrize("left_it", ["killed", "ended"])
def test_a_writer_that_outlives_its_trainer_is_waited_for(folder, without_locks, caplog, left_it):
    caplog.set_level("INFO")
    made = record(folder / LOCK, 1, gone())
    if left_it == "ended":
        lease.release_record(made)
    inheritor = lease.inheritor_of(folder / LOCK)
    lease.write_record(inheritor, lease.process())
    threading.Timer(0.5, lambda: lease.release_record(inheritor)).start()
    started = time.monotonic()
    lock_checkpoints(folder).close()
    assert time.monotonic() - started >= 0.5
    logged(caplog, "writer", "waiting")


# A writer that hangs


@pytest.fixture
def orphan(folder, monkeypatch):
    """A process that holds the system's lock, as the inheritor of a trainer that is dead."""
    monkeypatch.setattr("trainer.checkpoint.resume.lock.HUNG_SECONDS", 0.5)
    monkeypatch.setattr("trainer.checkpoint.resume.lock.DEATH_SECONDS", 0.5)
    other, took = in_another_process("", folder / LOCK)
    assert took
    lease.write_record(folder / LOCK, gone())
    lease.write_record(lease.inheritor_of(folder / LOCK), lease.process(other.pid), progress=7)
    yield other
    other.kill()
    other.wait()


def test_a_writer_that_hangs_is_ended_and_the_start_goes_on(folder, orphan, caplog):
    started = time.monotonic()
    lock_checkpoints(folder).close()
    assert time.monotonic() - started >= 0.5 and orphan.wait(10) == -9
    assert "has moved nothing for" in caplog.text and f"was ended (process {orphan.pid} on" in caplog.text


def test_a_writer_that_moves_is_waited_for_however_long_it_takes(folder, orphan):
    moved = 0
    inheritor, who = lease.inheritor_of(folder / LOCK), lease.process(orphan.pid)

    def work():
        nonlocal moved
        for moved in range(15):
            lease.write_record(inheritor, who, progress=100 + moved)
            time.sleep(0.1)
        orphan.terminate()

    worker = threading.Thread(target=work)
    worker.start()
    lock_checkpoints(folder).close()
    worker.join()
    assert moved == 14 and orphan.wait(10) == -15, "it was not killed"


def test_a_writer_that_cannot_die_is_refused_with_what_to_do(folder, orphan, monkeypatch):
    with (
        monkeypatch.context() as patch,
        refuses(CheckpointError, "SIGKILL", "disk", "restart the machine"),
    ):
        patch.setattr("os.kill", lambda *_: None)
        lock_checkpoints(folder)


@pytest.mark.parametrize("is_known", [True, False])
def test_a_writer_that_cannot_be_ended_from_here_is_refused_with_what_to_do(folder, orphan, is_known):
    inheritor = lease.inheritor_of(folder / LOCK)
    lease.write_record(inheritor, ELSEWHERE, progress=7) if is_known else inheritor.unlink()
    where = "process 1 on node7" if is_known else "trainer.checkpoint.save.writer"
    with refuses(CheckpointError, "disk", where):
        lock_checkpoints(folder)


@pytest.mark.parametrize(
    ("is_orphan", "words"), [(True, "has moved nothing for"), (False, "another process is writing checkpoints")]
)
def test_a_trainer_on_another_machine_that_holds_the_systems_lock_is_dead_when_its_writer_says_so(
    folder, orphan, is_orphan, words
):
    lease.write_record(folder / LOCK, ELSEWHERE)
    lease.write_record(lease.inheritor_of(folder / LOCK), ELSEWHERE, progress=7, is_orphan=is_orphan)
    with pytest.raises(CheckpointError, match=words):
        lock_checkpoints(folder)
