"""Why a process of a run ended: one word for an exception or a signal, which the journal keeps."""

import errno
import re
import signal
from collections.abc import Iterator
from enum import StrEnum

from trainer.errors import NoRoomError, OutOfMemoryError, RankLostError, TrainerError


class Cause(StrEnum):
    """Why a process of a run ended."""

    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    DIVERGED = "diverged"
    ROLLBACK = "rollback"
    """Diverged, and went back to before that by itself."""
    REFUSED = "refused"
    """Something has to be fixed, and the error says what."""
    OUT_OF_MEMORY = "out_of_memory"
    """Of a GPU or of the machine, where the process itself could say so."""
    DEVICE = "device"
    """A GPU or its driver failed."""
    HANG = "hang"
    """It made no progress, and was ended for it."""
    EXCEPTION = "exception"
    """The trainer's own code, or a library below it, raised."""
    FAULT = "fault"
    """SIGSEGV, SIGBUS, SIGFPE, SIGILL or SIGABRT."""
    DISK = "disk"
    """Full, over quota, broken or read-only."""
    NO_ROOM = "no_room"
    """The disk has no room for its checkpoints, or a quota is used up: it was not started."""
    CONNECTION = "connection"
    """What ranks talk by (NCCL, the store) failed, and did not say that one of them is gone."""
    PEER = "peer"
    """Another process of the launch went away, and this one with it."""
    SIGKILL = "SIGKILL"
    """By a person, the system's out-of-memory killer or a scheduler."""
    SIGTERM = "SIGTERM"
    """Before it could save."""
    SIGINT = "SIGINT"
    """By a second Ctrl+C."""
    SIGHUP = "SIGHUP"
    """Its terminal was closed."""
    UNKNOWN = "unknown"


OWN_FAILURES = (Cause.EXCEPTION, Cause.FAULT)
"""Of the trainer itself: replaying is exact, so the same state fails again at the same step."""

SECOND_HAND = (Cause.PEER, Cause.CONNECTION, Cause.UNKNOWN)
"""Say nothing of why the launch ended: another process knows."""

_FAULTS = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT})
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)
_DISK_WORDS = re.compile(r"No space left on device|Disk quota exceeded|Input/output error|Read-only file system")
_DISTRIBUTED_ERRORS = {"DistError", "DistBackendError", "DistNetworkError", "DistStoreError"}
"""What NCCL and the store raise; gloo raises plain RuntimeErrors."""
_GONE = re.compile(
    r"by (remote )?peer|connection refused|socket closed|broken pipe|remote process exit(ed|ing)|got 0 bytes",
    re.IGNORECASE,
)
"""How gloo, NCCL and the store say that the other end is no more."""
_DEVICE = re.compile(r"CUDA error|CUDA driver error|uncorrectable ECC|\bXid\b")
"""How torch passes on what a GPU or its driver has."""
_WAITED = re.compile("timed out waiting", re.IGNORECASE)


def cause_of_error(error: BaseException) -> Cause:
    """The cause for a process that this exception ends; what caused the exception is looked at too."""
    chain = list(_chain(error))
    if isinstance(error, RankLostError):
        return Cause.PEER
    if isinstance(error, KeyboardInterrupt):
        return Cause.SIGINT
    if isinstance(error, NoRoomError):
        return Cause.NO_ROOM
    if any(map(_is_of_a_disk, chain)):
        return Cause.DISK
    if isinstance(error, OutOfMemoryError):
        return Cause.OUT_OF_MEMORY
    if isinstance(error, TrainerError):
        return Cause.REFUSED
    if isinstance(error, SystemExit):
        return Cause.INTERRUPTED
    if any(map(_is_of_a_peer, chain)):
        return Cause.PEER
    if any(map(_is_distributed, chain)):
        return Cause.CONNECTION
    if any(_DEVICE.search(str(one)) for one in chain):
        return Cause.DEVICE
    return Cause.EXCEPTION


def cause_of_signal(number: int) -> Cause:
    """The cause for a process that a signal ended."""
    if number in _FAULTS:
        return Cause.FAULT
    try:
        return Cause(signal.Signals(number).name)
    except ValueError:
        return Cause.UNKNOWN


def is_of_a_connection(error: BaseException) -> bool:
    """Whether torch raised it over the connection to another rank, whatever happened there."""
    return _is_distributed(error) or "gloo" in str(error).lower()


def says_peer_is_gone(error: BaseException) -> bool:
    """Whether an error of a connection says that the process at its other end is no more."""
    return bool(_GONE.search(str(error)))


def _is_of_a_disk(error: BaseException) -> bool:
    is_known = isinstance(error, OSError) and error.errno in _DISK_ERRORS
    return is_known or bool(_DISK_WORDS.search(str(error)))


def _is_of_a_peer(error: BaseException) -> bool:
    return isinstance(error, ConnectionError) or says_peer_is_gone(error) or bool(_WAITED.search(str(error)))


def _is_distributed(error: BaseException) -> bool:
    """By the name of its class: what answers at once imports no torch."""
    return any(kind.__name__ in _DISTRIBUTED_ERRORS for kind in type(error).__mro__)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and those it was raised from or while handling, innermost last; each once, since they may be a circle."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
