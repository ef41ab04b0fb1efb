"""One writer a folder of checkpoints: another that swept or pruned there would remove what this one writes.

The system's lock on `.lock` lives as long as the process that took it and those that inherited it: a trainer and its writer. So while a
trainer's last snapshot is still being committed, after its death, the lock is held, and the file says by whose trainer.
"""

import json
import logging
import os
import socket
import time
from pathlib import Path
from typing import Any, BinaryIO

from trainer import files
from trainer.errors import CheckpointError

log = logging.getLogger(__name__)

LOCK = ".lock"

WRITER_SECONDS = 900.0
"""How long a start waits for the writer that the launch before left: a slow disk and a large model take minutes."""

_LOOK_SECONDS = 0.1


def hold(folder: Path) -> BinaryIO:
    """Takes the folder for this process, waiting for a writer whose trainer is dead.

    raises  CheckpointError when a living trainer holds it, or the writer does not come to an end
    """
    path, started, told = folder / LOCK, time.monotonic(), False
    while (held := files.lock(path)) is None:
        owner = read_owner(path)
        if _lives(owner):
            who = f" (process {owner['pid']} on {owner['host']})" if owner else ""
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
    _write_owner(held)
    return held


def read_owner(path: Path) -> dict[str, Any] | None:
    """Who says to hold a lock: process, its start and its host; None when nobody does."""
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
        return owner if isinstance(owner["pid"], int) and isinstance(owner["host"], str) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_owner(held: BinaryIO) -> None:
    owner = {"pid": os.getpid(), "started": _started(os.getpid()), "host": socket.gethostname()}
    held.truncate(0)
    held.write(json.dumps(owner).encode())
    held.flush()


def _lives(owner: dict[str, Any] | None) -> bool:
    """Whether the process that took a lock still lives: of another machine nobody can tell from here, and its lock counts."""
    if owner is None:
        return True  # it holds the lock and has not said yet who it is
    if owner["host"] != socket.gethostname():
        return True
    return owner["pid"] != os.getpid() and (began := _started(owner["pid"])) is not None and began == owner.get("started")


def _started(pid: int) -> str | None:
    """When a process began, by no clock that can be set: ticks since this boot of the machine. None: there is none, or only its remains."""
    try:
        state, *others = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    return None if state in "ZX" else f"{boot} {others[18]}"
