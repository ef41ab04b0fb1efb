"""Ends a process when the one that started it ends, so that no rank trains on without a launcher.

`trainer launch` starts a launcher, which starts the ranks; each of the two may be killed by SIGKILL and can then signal nobody. A
process that a person started is left alone: under nohup its shell may end before it.
"""

import ctypes
import os
import signal
from pathlib import Path

STARTED_BY = "TRAINER_STARTED_BY"
"""The environment variable with the id of the process that starts this one, in case it ends before this one has asked for the signal."""

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Has the kernel send SIGTERM to this process when its parent ends, however it ends; at once where it has ended already."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    started_by = os.environ.get(STARTED_BY)
    if started_by and not Path("/proc", started_by).exists():
        os.kill(os.getpid(), signal.SIGTERM)


def end_with_launcher() -> None:
    """The same for a rank, whose parent is torch's agent, under a bare `accelerate launch` too; anyone else's parent is a person's."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()


def launcher_pid() -> int:
    """The process id of the launcher that started this rank; this process's own where there is none."""
    started_by = os.environ.get(STARTED_BY)
    if started_by:
        return int(started_by)
    return os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else os.getpid()
