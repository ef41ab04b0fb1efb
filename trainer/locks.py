"""One holder a folder: by the system's lock where the file system has one, by a lease (lease.py) where it has none.

The system's lock (flock on `.lock`) ends with the process that took it, however it ends, and with those that inherited it.
"""

import errno
import fcntl
import logging
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Self

from trainer import lease
from trainer.errors import LaunchError
from trainer.lease import Lease

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.2
"""For so long a lock that is held is asked for again: who only looks holds it for an instant (is_held)."""

_WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


class Lock:
    """A lock that this process holds until it is closed, or ends."""

    def __init__(self, path: Path, file: BinaryIO | None, lease: Lease | None) -> None:
        """`file` holds the system's lock, None where there is none; `lease`: this holder's own, where it needs one."""
        self.path, self._file, self._lease = path, file, lease

    @property
    def descriptors(self) -> list[int]:
        """What a child has to inherit to hold the lock too."""
        return [self._file.fileno()] if self._file else []

    def hand_over(self, pid: int) -> None:
        """Makes a child the inheritor, from before it does anything; it leaves its own signs of life. raises OSError"""
        lease.write_record(lease.inheritor_of(self.path), lease.process(pid), beats=0)

    def close(self) -> None:
        """Releases it; a child that inherited it, or an inheritor that lives, still holds it."""
        if self._lease is not None:
            self._lease.release()
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def take(path: Path) -> Lock | None:
    """Takes a lock that ends with this process, however it ends; None when another holds it. raises OSError when it cannot be written"""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "r+b", buffering=0, opener=_make)
    try:
        _lock(file)
    except BlockingIOError:
        file.close()
        return None
    except OSError as error:
        file.close()
        if error.errno not in _WITHOUT_LOCKS:
            raise
        log.warning(
            f"{path.parent} is on a file system without locks ({error.strerror}): a second process of one run is recognised by "
            f"{path.name}-*, which says who holds it"
        )
        mine = Lease.take(path)
        return Lock(path, None, mine) if mine else None
    mine = None
    if lease.newest_record(path):  # another machine may have mounted the same folder without locks
        mine = Lease.take(path)
        if mine is None:
            file.close()
            return None
    lease.write_record(path, lease.process())
    return Lock(path, file, mine)


def _lock(file: BinaryIO) -> None:
    """raises BlockingIOError where another holds it"""
    ends = time.monotonic() + LOOK_SECONDS
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > ends:
                raise
        time.sleep(0.02)


def is_held(path: Path) -> bool:
    """Whether another process holds a lock; leaves no trace. raises OSError where that cannot be known"""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
    return lease.is_taken(path)


def _make(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT, 0o644)


# A run's folder in runs/


def lock_run(folder: Path) -> Lock:
    """Takes a run's folder for this process, as long as it lives; LaunchError when another process trains this run."""
    try:
        lock = take(folder / ".lock")
    except OSError as error:
        raise LaunchError(
            f"{folder} cannot be written ({error.strerror}); fix that, or set runs_folder to another place"
        ) from None
    if lock is None:
        raise _is_trained_by_another(folder)
    return lock


def is_trained(folder: Path) -> bool:
    """Whether another process trains a run; leaves no trace. raises LaunchError where nobody can know"""
    path = folder / ".lock"
    try:
        return path.is_file() and is_held(path)
    except OSError as error:
        raise LaunchError(
            f"cannot find out whether another process trains {folder.name}: {path} cannot be locked ({error.strerror}); fix that disk "
            "or the rights on it, or set runs_folder to another place"
        ) from None


def check_not_trained(folder: Path) -> None:
    """Refuses a run that another process trains, or starts again, and leaves no trace. raises LaunchError"""
    supervisor = supervisor_of(folder)
    if supervisor is not None and supervisor[0] != lease.process():
        raise _is_supervised_by_another(folder)
    if is_trained(folder):
        raise _is_trained_by_another(folder)


def _is_trained_by_another(folder: Path) -> LaunchError:
    return LaunchError(
        f"another process is training {folder.name} right now (it holds {folder / '.lock'}); wait for it, stop it, or give this "
        "run another name: name=..."
    )


# Who starts a run again


SUPERVISOR = ".supervisor"
"""The lock in a run's folder of the process that starts it again, as long as it does; it says who that is, and `since` (ISO 8601)."""


def lock_supervision(folder: Path) -> Lock:
    """Takes it for this process to start a run again. raises LaunchError where another does that, OSError where nothing can be written"""
    lock = take(folder / SUPERVISOR)
    if lock is None:
        raise _is_supervised_by_another(folder)
    lease.write_record(lock.path, lease.process(), since=datetime.now(UTC).isoformat(timespec="seconds"))
    return lock


def supervisor_of(folder: Path) -> tuple[lease.Process, str | None] | None:
    """Who supervises a run, and since when; None where nobody does, also where the one that did went down with its machine."""
    path = folder / SUPERVISOR
    record = lease.read_record(path)
    try:
        return (record[0], record[1].get("since")) if record and is_held(path) else None
    except OSError:
        return None


def _is_supervised_by_another(folder: Path) -> LaunchError:
    who, since = supervisor_of(folder) or ("another process", "just now")
    return LaunchError(
        f"{who} supervises {folder.name} since {since}, and starts it again when it ends; wait for it, stop it (trainer stop {folder.name}), or "
        "give this run another name: name=..."
    )
