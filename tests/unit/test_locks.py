"""One holder a folder, with the system's lock and without it."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from tests.messages import logged, refuses
from trainer import files, lease, locks
from trainer.errors import LaunchError
from trainer.locks import SUPERVISOR, check_not_trained, lock_run, lock_supervision, supervisor_of

WITHOUT = "import errno, fcntl\ndef flock(*_): raise OSError(errno.ENOLCK, 'No locks available')\nfcntl.flock = flock\n"
ELSEWHERE = lease.Process(1, "77", "another boot pid:[1]", "node7")
"""A process that nobody here can ask for."""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / ".lock"


@pytest.fixture
def without_locks(monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(lease, "STILL_SECONDS", 0.4)
    monkeypatch.setattr(lease, "POLL_SECONDS", 0.02)


def record(path, number, who, **facts):
    path.parent.mkdir(exist_ok=True)
    made = path.with_name(f"{path.name}-{number:08d}")
    lease.write_record(made, who, **facts)
    return made


def gone():
    """A process of this machine that has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    who = lease.process(ended.pid)
    ended.wait()
    return who


def names(path):
    return sorted(each.name for each in path.parent.iterdir())


@contextmanager
def beating(made, who):
    """A holder on another machine, which lives."""
    over = threading.Event()

    def beat():
        beats = 0
        while not over.wait(0.05):
            beats += 1
            lease.write_record(made, who, beats=beats)

    thread = threading.Thread(target=beat)
    thread.start()
    yield
    over.set()
    thread.join()


def in_another_process(script, path):
    """Starts a process that takes the lock, and waits until it has said what it got."""
    code = f"{script}\nfrom pathlib import Path\nfrom trainer import locks\nheld = locks.take(Path({str(path)!r}))\nprint(held is not None, flush=True)\n"
    other = subprocess.Popen(
        [sys.executable, "-c", f"{code}import time; time.sleep(60)"],
        cwd=files.project_folder(),
        stdout=subprocess.PIPE,
        text=True,
    )
    return other, other.stdout.readline().strip() == "True"


# With the system's lock


def test_a_lock_is_held_by_one_and_free_again_when_it_is_closed(path):
    held = locks.take(path)
    assert held is not None
    assert locks.take(path) is None
    assert locks.is_held(path)
    assert lease.holder(path) == lease.process()
    assert names(path) == [".lock"]
    held.close()
    assert not locks.is_held(path)
    locks.take(path).close()


@pytest.mark.parametrize("script", ["", WITHOUT], ids=["flock", "records"])
def test_a_lock_is_free_again_when_its_process_ends_however_it_ends(path, script, request):
    if script:
        request.getfixturevalue("without_locks")
    other, took = in_another_process(script, path)
    assert took
    assert locks.take(path) is None
    assert locks.is_held(path)
    assert lease.holder(path).pid == other.pid
    other.kill()
    other.wait()
    assert not locks.is_held(path)
    locks.take(path).close()


def test_a_file_system_that_is_broken_is_not_one_without_locks(path, monkeypatch):
    def flock(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output"):
        locks.take(path)


# Without


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_where_there_are_no_locks_a_record_holds_and_that_is_announced(path, monkeypatch, caplog, number):
    def flock(*_):
        raise OSError(number, "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)
    held = locks.take(path)
    assert names(path) == [".lock", ".lock-00000001"]
    logged(caplog, path.parent, "no locks")
    assert locks.take(path) is None
    assert locks.is_held(path)
    held.close()
    assert not locks.is_held(path)
    again = locks.take(path)
    assert names(path) == [".lock", ".lock-00000002"]
    again.close()


def test_a_record_whose_process_is_gone_or_whose_number_another_has_now_is_stale_at_once(
    path, without_locks, monkeypatch
):
    monkeypatch.setattr(lease, "STILL_SECONDS", 60.0)
    record(path, 3, gone())
    locks.take(path).close()
    mine = lease.process()
    record(path, 5, lease.Process(mine.pid, "1", mine.machine, mine.host))
    locks.take(path).close()
    assert names(path) == [".lock", ".lock-00000006"]


def test_a_record_of_another_machine_counts_as_long_as_it_beats(path, without_locks, caplog):
    caplog.set_level("INFO")
    with beating(record(path, 1, ELSEWHERE), ELSEWHERE):
        assert locks.take(path) is None
        assert locks.is_held(path)
    logged(caplog, "process 1", "node7")
    held = locks.take(path)
    assert held is not None
    assert lease.holder(path) == lease.process()
    held.close()


def test_the_times_of_a_record_are_not_looked_at(path, without_locks):
    for seconds in (0, 4 * 10**9):
        with beating(made := record(path, 1, ELSEWHERE), ELSEWHERE):
            os.utime(made, (seconds, seconds))
            assert locks.take(path) is None
        os.utime(made, (seconds, seconds))
        locks.take(path).close()
        for each in path.parent.iterdir():
            each.unlink()


def test_a_record_that_was_never_written_is_stale_after_a_while(path, without_locks):
    path.parent.mkdir()
    path.with_name(".lock-00000001").touch()
    locks.take(path).close()
    assert names(path) == [".lock", ".lock-00000002"]


def test_one_who_looked_long_ago_does_not_take_a_number_below_the_highest(path, without_locks, monkeypatch):
    """It saw the first record, and two holders came since; the second has removed all before it."""
    first = record(path, 1, gone())
    record(path, 3, lease.process())
    seen, real = [first], lease.newest_record
    monkeypatch.setattr(lease, "newest_record", lambda path: seen.pop() if seen else real(path))
    assert lease.next_record(path) is None
    assert ".lock-00000002" not in names(path)


def test_a_number_that_another_took_since_the_look_is_that_ones(path, without_locks, monkeypatch):
    first, real, looks = record(path, 1, gone()), lease.newest_record, []

    def newest(path):
        looks.append(real(path))
        if len(looks) == 1:
            record(path, 2, lease.process(os.getppid()))  # between the look and the taking
            return first
        return looks[-1]

    monkeypatch.setattr(lease, "newest_record", newest)
    assert lease.next_record(path) is None
    assert lease.read_record(path.with_name(".lock-00000002"))[0].pid == os.getppid()


def test_of_many_who_find_a_stale_record_at_once_one_takes_it(path, without_locks):
    record(path, 1, gone())
    script = f"{WITHOUT}import time\nfrom pathlib import Path\ntime.sleep(max(0, {time.time() + 1.0} - time.time()))\n"
    others = [in_another_process_later(script, path) for _ in range(6)]
    took = [other.stdout.readline().strip() == "True" for other in others]
    for other in others:
        other.kill()
        other.wait()
    assert sum(took) == 1


def in_another_process_later(script, path):
    code = f"from trainer import locks\n{script}print(locks.take(Path({str(path)!r})) is not None, flush=True)\ntime.sleep(60)"
    return subprocess.Popen([sys.executable, "-c", code], cwd=files.project_folder(), stdout=subprocess.PIPE, text=True)


def test_an_inheritor_holds_on_when_the_holder_is_gone(path, without_locks):
    record(path, 1, gone())
    lease.write_record(lease.inheritor_of(path), lease.process())
    assert locks.take(path) is None
    assert locks.is_held(path)
    lease.release_record(lease.inheritor_of(path))
    locks.take(path).close()


def test_a_child_is_the_inheritor_from_before_it_does_anything(path, without_locks):
    held = locks.take(path)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], stdout=subprocess.PIPE)
    held.hand_over(child.pid)
    held.close()
    assert locks.take(path) is None
    child.kill()
    child.wait()
    locks.take(path).close()


def test_a_holder_beats_in_place_which_a_full_disk_takes_too(path, without_locks, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.02)
    held = locks.take(path)
    made = lease.newest_record(path)
    first, ends = made.stat(), time.monotonic() + 10
    while lease.read_record(made)[1]["beats"] < 3 and time.monotonic() < ends:
        time.sleep(0.01)
    assert json.loads(made.read_bytes())["beats"] >= 3
    assert (made.stat().st_ino, made.stat().st_size) == (first.st_ino, first.st_size)
    held.close()


def test_one_who_was_taken_for_dead_ends_itself(path, without_locks):
    other, took = in_another_process(f"{WITHOUT}from trainer import lease\nlease.BEAT_SECONDS = 0.05", path)
    assert took
    record(path, 2, lease.process())
    assert other.wait(20) == 1


def test_a_record_that_a_lock_of_another_mount_has_left_counts_where_there_are_locks_too(path):
    record(path, 1, lease.process())
    assert locks.take(path) is None
    assert locks.is_held(path)
    record(path, 1, gone())
    held = locks.take(path)
    assert names(path) == [".lock", ".lock-00000002"]
    held.close()


def test_a_release_that_cannot_be_written_is_told(path, without_locks, monkeypatch, caplog):
    held = locks.take(path)

    def broken(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(lease, "write_record", broken)
        held.close()
    logged(caplog, "Input/output error")


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b'{"pid": 1}', b'{"pid": "x", "started": 1, "machine": 2, "host": 3}']
)
def test_what_is_no_record_is_none(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    assert lease.read_record(tmp_path / "x") is None
    assert lease.read_record(tmp_path / "y") is None


# A run's folder


def test_a_run_is_held_by_one_process_and_a_look_leaves_no_trace(tmp_path):
    folder = tmp_path / "runs" / "mine"
    check_not_trained(folder)
    assert not folder.exists()
    held = lock_run(folder)
    with refuses(LaunchError, "another process", "mine"):
        check_not_trained(folder)
    held.close()
    check_not_trained(folder)


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_a_run_whose_lock_cannot_be_asked_for_is_refused(tmp_path, monkeypatch, number):
    folder = tmp_path / "runs" / "mine"
    lock_run(folder).close()

    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with refuses(LaunchError, "/mine/.lock", os.strerror(number)):
        check_not_trained(folder)


def test_a_run_that_nothing_can_be_written_of_is_refused(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with refuses(LaunchError, "runs/mine", "runs_folder"):
        lock_run(tmp_path / "runs" / "mine")


# Who starts a run again


def test_a_run_is_supervised_by_one_process_and_a_second_is_told_by_whom(tmp_path):
    folder = tmp_path / "runs" / "mine"
    held = lock_supervision(folder)
    who, since = supervisor_of(folder)
    assert (who, bool(since)) == (lease.process(), True)
    check_not_trained(folder)  # by whoever supervises it himself
    with refuses(LaunchError, "supervises mine", f"process {os.getpid()}", since):
        lock_supervision(folder)
    held.close()
    assert supervisor_of(folder) is None
    lock_supervision(folder).close()


def test_what_a_supervisor_left_that_went_down_with_its_machine_or_container_keeps_nobody_from_starting(tmp_path):
    """After a reboot its process is of another boot, for which nobody can ask the system."""
    folder = tmp_path / "runs" / "mine"
    lock_supervision(folder).close()
    lease.write_record(folder / SUPERVISOR, ELSEWHERE, since="2026-01-01T00:00:00+00:00")
    assert supervisor_of(folder) is None
    check_not_trained(folder)
    lock_supervision(folder).close()


def test_without_locks_a_supervisor_is_known_by_its_lease(tmp_path, without_locks):
    folder = tmp_path / "runs" / "mine"
    held = lock_supervision(folder)
    assert supervisor_of(folder)[0] == lease.process()
    with refuses(LaunchError, "supervises mine"):
        lock_supervision(folder)
    held.close()
    assert supervisor_of(folder) is None


def test_a_look_at_a_lock_keeps_nobody_from_taking_it(path):
    """`status --watch` looks again and again, and holds it for an instant each time."""
    locks.take(path).close()
    with open(path, "rb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        threading.Timer(0.05, fcntl.flock, (looking.fileno(), fcntl.LOCK_UN)).start()
        with locks.take(path) as taken:
            assert taken is not None
