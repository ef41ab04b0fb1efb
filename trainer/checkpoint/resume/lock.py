"""One writer a folder of checkpoints: another that swept or pruned there would remove what this one writes.

The lock on `.lock` lives as long as the trainer that took it and its writer, which is its inheritor. So while a trainer's last snapshot is
still being committed, after its death, the lock is held, and says by whose trainer. The inheritor's record has a counter that moves with
every block it writes: a start waits as long as that moves, and ends a writer that hangs.
"""

import logging
import os
import signal
import time
from pathlib import Path

from trainer import lease, locks
from trainer.errors import CheckpointError
from trainer.locks import Lock
from trainer.text import duration

log = logging.getLogger(__name__)

LOCK = ".lock"

HUNG_SECONDS = 300.0
"""A writer whose counter has stood still for so long while it had something to do hangs with its disk; whoever has to wait for it ends
it then. The counter moves with every 8 MB. A launcher gives a last save twice this time, and fsync of a large file takes its part."""

DEATH_SECONDS = 20.0
"""How long a writer that was killed may take to be gone; one that waits for a disk within the system cannot die before that answers."""

_LOOK_SECONDS = 0.1


def lock_now(folder: Path, remedy: str) -> Lock:
    """Takes the folder for this process. raises CheckpointError with the remedy while another process has it, OSError"""
    lock = locks.take(folder / LOCK)
    if lock is None:
        raise CheckpointError(
            f"another process writes checkpoints to {folder} right now (it holds {folder / LOCK}); {remedy}"
        )
    return lock


def lock_checkpoints(folder: Path) -> Lock:
    """Takes the folder for this process, waiting for a writer whose trainer is dead.

    raises  CheckpointError when a living trainer holds it, or the writer hangs and cannot be ended from here
    """
    path = folder / LOCK
    orphan: _Orphan | None = None
    while (lock := locks.take(path)) is None:
        if lease.holder_lives(path):
            owner = lease.holder(path)
            who = f" ({owner})" if owner else ""
            raise CheckpointError(
                f"another process is writing checkpoints to {folder} right now{who}; wait for it, stop it, or give this run another name"
            )
        if orphan is None:
            log.info("the last launch left a writer that is still committing its newest snapshot; waiting for it")
            orphan = _Orphan(path)
        orphan.look()
        time.sleep(_LOOK_SECONDS)
    return lock


class _Orphan:
    """The writer of a dead trainer, as the next start sees it."""

    def __init__(self, path: Path) -> None:
        self._path, self._progress = path, -1
        self._moved_at, self._killed_at = time.monotonic(), 0.0

    def look(self) -> None:
        """Ends it when its counter has stood still for HUNG_SECONDS. raises CheckpointError when it cannot be ended from here"""
        now, inheritor = time.monotonic(), lease.read_record(lease.inheritor_of(self._path))
        progress = inheritor[1].get("progress", 0) if inheritor else 0
        if progress != self._progress:
            self._moved_at, self._progress = now, progress
        if now - self._moved_at < HUNG_SECONDS:
            return
        hangs = f"the writer that the last launch left in {self._path.parent} has moved nothing for {duration(HUNG_SECONDS)}"
        if inheritor is None or not inheritor[0].is_here:
            unnamed = "trainer.checkpoint.save.writer, a process that cannot be named from here"
            where = inheritor[0] if inheritor else unnamed
            raise CheckpointError(
                f"{hangs}: its disk may hang; fix that, or end it where it runs ({where}), and start again"
            )
        if not self._killed_at:
            if inheritor[0].is_running:
                os.kill(inheritor[0].pid, signal.SIGKILL)
            self._killed_at = now
            log.warning(
                f"{hangs}, and was ended ({inheritor[0]}): its snapshot is lost, and the newest checkpoint on the disk goes on"
            )
        elif now - self._killed_at > DEATH_SECONDS:
            raise CheckpointError(
                f"{hangs}, was sent SIGKILL and does not die ({inheritor[0]}): it waits for a disk that does not answer; fix that, or restart "
                "the machine, and start again"
            )
