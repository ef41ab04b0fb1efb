"""Which process of a launch failed first, from the launcher that saw it to `trainer launch`, which started that launcher.

A rank that is killed leaves no reason. Its launcher knows the signal, and sends it through a pipe, which needs no room on any disk.
"""

import json
import os
import signal
from dataclasses import asdict, dataclass

FAILURE_PIPE = "TRAINER_FAILURE_PIPE"
"""The environment variable with the number of the open pipe."""


@dataclass(frozen=True)
class ProcessFailure:
    """The first process of a launch that failed, as its launcher saw it."""

    rank: int
    pid: int
    exit_code: int
    """Negative: the number of the signal that ended it."""

    @property
    def was_killed(self) -> bool:
        return self.exit_code < 0


def send_failure(failure: ProcessFailure) -> None:
    """Sends it to `trainer launch`, if that started this launcher."""
    if pipe := os.environ.get(FAILURE_PIPE):
        os.write(int(pipe), json.dumps(asdict(failure)).encode())


def receive_failure(pipe: int) -> ProcessFailure | None:
    """What the launcher, which has ended, sent through this pipe; None when nothing failed, or when it could not send."""
    os.set_blocking(pipe, False)
    try:
        return ProcessFailure(**json.loads(os.read(pipe, 65536)))
    except (BlockingIOError, ValueError):
        return None


def how_it_ended(who: str, exit_code: int) -> str:
    """What is known of a process that ended without leaving a reason, and what to do."""
    if exit_code >= 0:
        return f"{who} ended with exit code {exit_code} before it could note why; what it printed says more"
    name = next((known.name for known in signal.Signals if known == -exit_code), f"signal {-exit_code}")
    hint = " (out of memory? the kernel's log says: dmesg)" if name == "SIGKILL" else ""
    return f"{who} was killed by {name}{hint}; start it again to continue"
