import errno
import signal

import pytest

from trainer.ending.causes import Cause, cause_of_error, cause_of_signal, is_of_a_connection, says_peer_is_gone
from trainer.ending.outcomes import ENDED, Outcome
from trainer.errors import CheckpointError, ConfigError, NoRoomError, OutOfMemoryError, RankLostError


def raised(error, *, cause=None, while_handling=None):
    try:
        if while_handling:
            try:
                raise while_handling
            except Exception:
                raise error  # noqa: B904 -- the context that Python sets by itself is what is tested
        raise error from cause
    except BaseException as caught:
        return caught


class DistBackendError(RuntimeError):
    """Stands for the error of torch.distributed that has this name."""


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ValueError("x"), "exception"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "device"),
        (MemoryError(), "exception"),
        (AssertionError(), "exception"),
        (FileNotFoundError(errno.ENOENT, "No such file"), "exception"),
        (KeyboardInterrupt(), "SIGINT"),
        (SystemExit(75), "interrupted"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk"),
        (OSError(errno.EIO, "Input/output error"), "disk"),
        (OSError(errno.EROFS, "Read-only file system"), "disk"),
        (PermissionError(errno.EACCES, "Permission denied"), "exception"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "disk"),
        (raised(CheckpointError("could not be written"), while_handling=OSError(errno.ENOSPC, "full")), "disk"),
        (raised(RuntimeError("x"), cause=OSError(errno.EIO, "broken")), "disk"),
        (raised(ValueError("x"), cause=None, while_handling=None), "exception"),
        (ConfigError("x"), "refused"),
        (RankLostError("rank 1: a bad shard"), "peer"),
        (ConnectionResetError(), "peer"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "peer"),
        (DistBackendError("NCCL error in: NCCLUtils.hpp:77, unhandled system error"), "connection"),
        (
            DistBackendError("ncclRemoteError: A call failed possibly due to a remote process exiting prematurely"),
            "peer",
        ),
        (NoRoomError("it needs 3 GB more"), "no_room"),
        (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234"), "peer"),
        (OutOfMemoryError("rank 0"), "out_of_memory"),
        (RuntimeError("Timed out waiting 1800000ms for recv operation to complete"), "peer"),
    ],
)
def test_an_exception_has_a_cause(error, cause):
    assert cause_of_error(error) == cause
    assert cause in list(Cause)


def test_what_a_suppressed_exception_was_is_not_looked_at():
    error = RuntimeError("x")
    error.__context__, error.__suppress_context__ = OSError(errno.ENOSPC, "full"), True
    assert cause_of_error(error) == "exception"


def test_exceptions_that_are_a_circle_have_a_cause():
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert cause_of_error(first) == "exception"


@pytest.mark.parametrize(
    ("number", "cause"),
    [
        (signal.SIGSEGV, "fault"),
        (signal.SIGBUS, "fault"),
        (signal.SIGFPE, "fault"),
        (signal.SIGILL, "fault"),
        (signal.SIGABRT, "fault"),
        (signal.SIGKILL, "SIGKILL"),
        (signal.SIGTERM, "SIGTERM"),
        (signal.SIGINT, "SIGINT"),
        (signal.SIGHUP, "SIGHUP"),
        (signal.SIGUSR1, "unknown"),
        (999, "unknown"),
    ],
)
def test_a_signal_has_a_cause(number, cause):
    assert cause_of_signal(int(number)) == cause
    assert cause in list(Cause)


@pytest.mark.parametrize(
    ("text", "is_gone"),
    [
        ("[gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:48816: Connection reset by peer", True),
        ("[gloo/transport/tcp/pair.cc:537] Write error: Broken pipe", True),
        ("NCCL error: remote process exited or there was a network error", True),
        ("socketProgress: Connection closed by remote peer host<4321>", True),
        ("gloo: Timed out waiting 1800000ms for recv operation to complete", False),
        ("NCCL: Duplicate GPU detected", False),
    ],
)
def test_the_words_that_a_peer_is_gone(text, is_gone):
    assert says_peer_is_gone(RuntimeError(text)) is is_gone


def test_an_error_is_of_a_connection_by_its_class_or_by_gloo():
    class Derived(DistBackendError):
        pass

    assert is_of_a_connection(Derived("x"))
    assert is_of_a_connection(RuntimeError("[gloo/transport] x"))
    assert not is_of_a_connection(RuntimeError("shapes do not match"))


def test_an_outcome_that_ends_a_run_by_itself_is_a_cause_of_the_same_name():
    for outcome in (*ENDED, Outcome.REFUSED):
        assert outcome == Outcome.FAILED or Cause(outcome) == outcome
