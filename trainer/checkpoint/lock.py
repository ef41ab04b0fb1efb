"""One writer a folder of checkpoints: another that swept or pruned there would remove what this one writes.

The lock on `.lock` lives as long as the trainer that took it and its writer, which is its heir. So while a trainer's last snapshot is
still being committed, after its death, the lock is held, and says by whose trainer.
"""

import logging
import os
import time
from pathlib import Path

from trainer import locks
from trainer.errors import CheckpointError
from trainer.locks import Lock

log = logging.getLogger(__name__)

LOCK = ".lock"

WRITER_SECONDS = 900.0
"""How long a start waits for the writer that the launch before left: a slow disk and a large model take minutes."""

_LOOK_SECONDS = 0.1


def hold(folder: Path) -> Lock:
    """Takes the folder for this process, waiting for a writer whose trainer is dead.

    raises  CheckpointError when a living trainer holds it, or the writer does not come to an end
    """
    path, started, told = folder / LOCK, time.monotonic(), False
    while (held := locks.take(path)) is None:
        if _trainer_lives(path):
            owner = locks.holder(path)
            who = f" ({owner})" if owner else ""
            raise CheckpointError(
                f"another process is writing checkpoints to {folder} right now{who}; wait for it, stop it, or give this run another name"
            )
        if time.monotonic() - started > WRITER_SECONDS:
            raise CheckpointError(
                f"the writer that the last launch left in {folder} has not ended in {WRITER_SECONDS:.0f} seconds: its disk may hang; "
                "mend that, end the process trainer.checkpoint.writer, and start again"
            )
        if not told:
            log.info("the last launch left a writer that is still committing its newest snapshot; waiting for it")
            told = True
        time.sleep(_LOOK_SECONDS)
    return held


def _trainer_lives(path: Path) -> bool:
    """Whether the process that took a lock still lives; where it has not said yet who it is, or nobody can tell, it counts as living."""
    if record := locks.newest_record(path):
        return locks.lives(record)
    owner = locks.holder(path)
    if owner is None or not owner.is_here:
        return True
    return owner.pid != os.getpid() and owner.is_running
