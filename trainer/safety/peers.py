"""The end of a rank whose peer failed while it waits for it within a GPU: there no connection breaks, and no signal reaches Python.

Over gloo, a rank that waits for a lost one gets an error at once. NCCL's kernels wait on, and the host waits for them in C, where it hears
neither SIGTERM nor an exception. So a thread looks for the reason that the failed rank left, and ends this process by it. And a rank that
fails itself may find no end: its interpreter can wait for what the GPU never finishes. The kernel's own clock bounds that.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.ending.ranks import failure_of_others, lost_to
from trainer.errors import RankLostError

LOOK_SECONDS = 1.0
"""Between two looks for a reason."""

GRACE_SECONDS = 5.0
"""How long a rank may take to end by itself once another has left its reason."""

END_SECONDS = 20.0
"""How long a rank that has failed, and has said why, may take to be gone."""


def waits_in_gpu() -> bool:
    """Whether this process and other ranks wait for each other in kernels of a GPU."""
    from torch import distributed

    try:
        return "nccl" in distributed.get_backend_config() and distributed.get_world_size() > 1
    except ValueError:  # there is no group, or none any more
        return False


@contextmanager
def ended_with_peers(folder: Path, end: Callable[[RankLostError], None]) -> Iterator[None]:
    """While this block runs, another rank's reason in `folder` is this one's too: `end` is called with it, in a thread, and has to end the process.

    Not where it ends by itself within GRACE_SECONDS, and not where waiting is done on the host.
    """
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(LOOK_SECONDS):
            # In this order: once the ranks have met, none of an earlier launch is left.
            if waits_in_gpu() and (failure := failure_of_others(folder)):
                if not is_over.wait(GRACE_SECONDS):
                    end(lost_to(failure))
                return

    thread = threading.Thread(target=look, name="peers", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        # A thread that ends beside the interpreter may be the one that frees a run's tensors, which ends the process by SIGABRT.
        thread.join(LOOK_SECONDS)


def end_soon() -> None:
    """Has the kernel end this process by SIGALRM when it is still there after END_SECONDS; called once all is said, where ranks wait in a GPU."""
    if waits_in_gpu():
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, END_SECONDS)
