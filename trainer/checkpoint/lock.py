"""One writer a folder of checkpoints: another that swept or pruned there would remove what this one writes.

The lock on `.lock` lives as long as the trainer that took it and its writer, which is its heir. So while a trainer's last snapshot is
still being committed, after its death, the lock is held, and says by whose trainer. The heir's record has a counter that moves with
every block it writes: a start waits as long as that moves, and ends a writer that hangs.
"""

import logging
import os
import signal
import time
from pathlib import Path

from trainer import locks
from trainer.checkpoint.channel import HUNG_SECONDS
from trainer.errors import CheckpointError
from trainer.locks import Lock
from trainer.text import duration

log = logging.getLogger(__name__)

LOCK = ".lock"

DEATH_SECONDS = 20.0
"""How long a writer that was killed may take to be gone; one that waits for a disk within the system cannot die before that answers."""

_LOOK_SECONDS = 0.1


def hold(folder: Path) -> Lock:
    """Takes the folder for this process, waiting for a writer whose trainer is dead.

    raises  CheckpointError when a living trainer holds it, or the writer hangs and cannot be ended from here
    """
    path = folder / LOCK
    orphan: _Orphan | None = None
    while (held := locks.take(path)) is None:
        if _trainer_lives(path):
            owner = locks.holder(path)
            who = f" ({owner})" if owner else ""
            raise CheckpointError(
                f"another process is writing checkpoints to {folder} right now{who}; wait for it, stop it, or give this run another name"
            )
        if orphan is None:
            log.info("the last launch left a writer that is still committing its newest snapshot; waiting for it")
            orphan = _Orphan(path)
        orphan.look()
        time.sleep(_LOOK_SECONDS)
    return held


def _trainer_lives(path: Path) -> bool:
    """Whether the process that took a lock still lives; where it has not said yet who it is, or nobody can tell, it counts as living."""
    if record := locks.newest_record(path):
        return locks.lives(record)
    owner = locks.holder(path)
    if owner is None:
        return True
    if not owner.is_here:  # only its writer can tell
        heir = locks.read_record(locks.heir_of(path))
        return heir is None or heir[0].machine != owner.machine or not heir[1].get("is_orphan", False)
    return owner.pid != os.getpid() and owner.is_running


class _Orphan:
    """The writer of a dead trainer, as the next start sees it."""

    def __init__(self, path: Path) -> None:
        self._path, self._progress = path, -1
        self._moved_at, self._killed_at = time.monotonic(), 0.0

    def look(self) -> None:
        """Ends it when its counter has stood still for HUNG_SECONDS. raises CheckpointError when it cannot be ended from here"""
        now, heir = time.monotonic(), locks.read_record(locks.heir_of(self._path))
        progress = heir[1].get("progress", 0) if heir else 0
        if progress != self._progress:
            self._moved_at, self._progress = now, progress
        if now - self._moved_at < HUNG_SECONDS:
            return
        hangs = f"the writer that the last launch left in {self._path.parent} has moved nothing for {duration(HUNG_SECONDS)}"
        if heir is None or not heir[0].is_here:
            where = str(heir[0]) if heir else "trainer.checkpoint.writer, a process that cannot be named from here"
            raise CheckpointError(
                f"{hangs}: its disk may hang; mend that, or end it where it runs ({where}), and start again"
            )
        if not self._killed_at:
            if heir[0].is_running:
                os.kill(heir[0].pid, signal.SIGKILL)
            self._killed_at = now
            log.warning(
                "%s, and was ended (%s): its snapshot is lost, and the newest checkpoint on the disk goes on",
                hangs,
                heir[0],
            )
        elif now - self._killed_at > DEATH_SECONDS:
            raise CheckpointError(
                f"{hangs}, was sent SIGKILL and does not die ({heir[0]}): it waits for a disk that does not answer; mend that, or restart "
                "the machine, and start again"
            )
