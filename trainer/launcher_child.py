"""The program of the process that launcher.py starts: `accelerate launch` itself, ended with its parent, its failure sent to it by a pipe."""

import logging
import os
import signal
import sys

from trainer.ending.launcher import ProcessFailure, send_failure
from trainer.safety.forward import pass_to_children
from trainer.safety.parent import STARTED_BY, end_with_parent

LOST_SECONDS = 20
"""How long a launcher waits for the other ranks once one has failed: they have nothing to save any more, and may hear no signal."""


def accelerate_launch() -> int:
    """`accelerate launch` itself, without the launcher's own tracebacks: the processes that it started have reported what happened."""
    pass_to_children()
    end_with_parent()
    os.environ[STARTED_BY] = str(os.getpid())
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the launcher listens, a Ctrl+C ends it without a traceback
    from accelerate.commands.launch import main
    from torch.distributed.elastic.multiprocessing.api import PContext, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    quiet_elastic()
    # torch's 30 seconds are no setting; a stop that was asked for names its own
    PContext.close.__defaults__ = (None, LOST_SECONDS)
    logging.getLogger("accelerate.commands.launch").setLevel(logging.ERROR)  # threads are counted by launch.num_threads
    try:
        main()
    except SignalException:
        return 1
    except ChildFailedError as error:
        rank, first = error.get_first_failure()
        send_failure(ProcessFailure(rank, first.pid, first.exitcode))
        return 1
    return 0


def quiet_elastic() -> None:
    """Silences the launcher's modules, which warn of each stop; every one of their loggers has a level of its own."""
    import torch.distributed.run  # all that a launch will load

    assert torch.distributed.run
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


if __name__ == "__main__":
    sys.exit(accelerate_launch())
