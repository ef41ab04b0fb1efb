"""One holder a folder where the file system has no locks (NFS mounted `nolock`, Lustre without `flock`, some of FUSE).

Each holder makes a record beside `.lock`, and the highest number holds:

    .lock             who holds it: process, its start, its machine
    .lock-00000003    the same, of a lease; it counts `beats` up as long as the holder lives
    .lock.heir        the inheritor, which holds on when the holder is gone, in the same words: the writer of a trainer

Whoever finds the highest number without a living holder makes the next, and O_EXCL lets only one do so. Whether a process lives is
asked of the system on its own machine, at once. Of another machine it is seen by the beats, timed with one's own monotonic clock:
clocks that jump or disagree change nothing. A holder that finds a higher number than its own was taken for dead, and ends itself.
"""

import atexit
import json
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

log = logging.getLogger(__name__)

BEAT_SECONDS = 5.0
"""The interval between two signs of life of a holder."""

STILL_SECONDS = 90.0
"""A record of another machine that stands still for so long is of a dead process: NFS may show a file as it was up to 60 seconds ago."""

POLL_SECONDS = 0.5
_RECORD_BYTES = 512


@dataclass(frozen=True)
class Process:
    """A process, told apart from every other of any machine and any time."""

    pid: int
    started: str | None
    """When it began, by no clock that can be set: ticks since the machine's boot."""
    machine: str
    """The boot of the machine and the space of process numbers in it, which a container has of its own."""
    host: str
    """For people: two machines may have one name."""

    @property
    def is_here(self) -> bool:
        """Whether this process can ask the system for it."""
        return self.machine == _machine()

    @property
    def is_running(self) -> bool:
        """Whether a process of this machine still is the one that was meant; one that has died and was not waited for is not."""
        return self.started is not None and _started(self.pid) == self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def process(pid: int | None = None) -> Process:
    """A process of this machine, by default this one."""
    pid = pid or os.getpid()
    return Process(pid, _started(pid), _machine(), socket.gethostname())


def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"


def _started(pid: int) -> str | None:
    try:
        said = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *others = said.rpartition(")")[2].split()
    return None if state in "ZX" else others[18]


# Records


def write_record(path: Path, who: Process, **facts: Any) -> None:
    """Writes a record in place, in one write of one size, which a full disk takes too. raises OSError"""
    content = json.dumps({**asdict(who), **facts}).encode().ljust(_RECORD_BYTES)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.pwrite(descriptor, content, 0)
    finally:
        os.close(descriptor)


def release_record(path: Path) -> None:
    """Says that this process, whose record it is, holds nothing any more; where that cannot be said, others find out in a while."""
    try:
        write_record(path, process(), is_released=True)
    except OSError as error:
        log.warning("%s still says that this process holds it: %s", path, error.strerror)


def read_record(path: Path) -> tuple[Process, dict[str, Any]] | None:
    """Whose record this is, and what else it says; None when there is none, or none that is whole."""
    try:
        facts = json.loads(path.read_bytes())
        who = Process(**{name: facts.pop(name) for name in ("pid", "started", "machine", "host")})
        return (who, facts) if isinstance(who.pid, int) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def lives(path: Path) -> bool:
    """Whether the process of a record lives; watches a record of another machine until that is known, for STILL_SECONDS at most."""
    first, ends, is_told = _content(path), time.monotonic() + STILL_SECONDS, False
    while (now := _content(path)) is not None:
        if (record := read_record(path)) and (record[1].get("is_released") or record[0].is_here):
            return not record[1].get("is_released") and record[0].is_running
        if now != first:
            return True
        if time.monotonic() > ends:
            return False
        if not is_told:
            is_told, who = True, record[0] if record else "an unknown process"
            watching = f"watching for a sign of life, {STILL_SECONDS:.0f} seconds at most"
            log.info("%s is held by %s, or was: %s", path.parent, who, watching)
        time.sleep(POLL_SECONDS)
    return False


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def keep_beating(path: Path, who: Process, facts: Callable[[], dict[str, Any]], beside: Path) -> Callable[[], None]:
    """Writes a record now and then from a thread, with what `facts` says; returns what stops that.

    beside  the lock; when it has a higher record than now, this process ends: another has taken its place
    """
    stopped, highest = threading.Event(), _number(newest_record(beside))

    def beat() -> None:
        beats = 0
        while not stopped.wait(BEAT_SECONDS):
            beats += 1
            try:
                if _number(newest_record(beside)) > highest:
                    log.critical(
                        "%s was taken over by another process while this one stood still; this one ends", path.parent
                    )
                    os._exit(1)
                write_record(path, who, beats=beats, **facts())
            except OSError as error:
                log.debug("no sign of life could be left in %s: %s", path, error)  # a disk that is back takes the next

    thread = threading.Thread(target=beat, name="beat", daemon=True)
    thread.start()

    def stop() -> None:
        stopped.set()
        thread.join(BEAT_SECONDS)

    return stop


def holder(path: Path) -> Process | None:
    """Who took a lock last; None when nobody did, or has not said so yet."""
    record = read_record(newest_record(path) or path)
    return record[0] if record else None


def inheritor_of(path: Path) -> Path:
    """Where the record is of a process that holds on when the holder of a lock is gone."""
    return path.with_name(f"{path.name}.heir")


def newest_record(path: Path) -> Path | None:
    """The record with the highest number; None where the system's lock is all there is."""
    return max(_records(path), key=_number, default=None)


def _records(path: Path) -> list[Path]:
    pattern = re.compile(rf"{re.escape(path.name)}-[0-9]{{8,}}")
    return [each for each in path.parent.glob(f"{path.name}-*") if pattern.fullmatch(each.name)]


def _number(record: Path | None) -> int:
    return int(record.name.rpartition("-")[2]) if record else 0


# Taking and holding


class Lease:
    """The record that this process holds a folder by; it beats until the lease is released, or the process ends."""

    def __init__(self, path: Path, record: Path) -> None:
        """`path`: the lock that it stands for; `record`: this holder's own."""
        self._record: Path | None = record
        self._stop = keep_beating(record, process(), dict, path)
        atexit.register(self.release)

    @classmethod
    def take(cls, path: Path) -> Self | None:
        """Makes the next record, once the holder of the highest is gone; None when it lives. raises OSError"""
        record = next_record(path)
        return None if record is None else cls(path, record)

    def release(self) -> None:
        """Says that this process holds nothing any more; the second time nothing happens."""
        self._stop()
        if self._record is not None:
            atexit.unregister(self.release)
            release_record(self._record)
            self._record = None


def is_taken(path: Path) -> bool:
    """Whether the holder of the highest record lives, or its inheritor; False where there is no record."""
    newest = newest_record(path)
    return newest is not None and (lives(newest) or lives(inheritor_of(path)))


def holder_lives(path: Path) -> bool:
    """Whether the process that took a lock still lives; where it has not said yet who it is, or nobody can tell, it counts as living."""
    if record := newest_record(path):
        return lives(record)
    owner = holder(path)
    if owner is None:
        return True
    if not owner.is_here:  # only its writer can tell
        inheritor = read_record(inheritor_of(path))
        return inheritor is None or inheritor[0].machine != owner.machine or not inheritor[1].get("is_orphan", False)
    return owner.pid != os.getpid() and owner.is_running


def next_record(path: Path) -> Path | None:
    """Makes the next record, once the holder of the highest is gone; None when it lives."""
    while True:
        highest = newest_record(path)
        if highest and (lives(highest) or lives(inheritor_of(path))):
            return None
        mine = path.with_name(f"{path.name}-{_number(highest) + 1:08d}")
        try:
            os.close(os.open(mine, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
        except FileExistsError:
            continue  # another was quicker, and lives
        write_record(mine, process(), beats=0)
        if newest_record(path) == mine:
            for older in set(_records(path)) - {mine}:
                older.unlink(missing_ok=True)
            return mine
        mine.unlink(missing_ok=True)  # two others came and went between the look and now; the second left a higher one
