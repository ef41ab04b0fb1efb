"""runs/NAME/.request.json: what a person asks of a run by `trainer save` or `trainer stop`; whoever may write in that folder may ask.

The command leaves it whole, in one step. Rank 0 looks for it after each step, which is one stat, takes it away, and answers in the
journal (event `request`, with its id). One that nobody has taken, the command takes back; what an earlier launch left goes when the
next one begins.
"""

import getpass
import json
import logging
import os
import platform
import time
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from trainer import files
from trainer.text import one_line

log = logging.getLogger(__name__)

REQUEST = ".request.json"

FREE_SECONDS = 30.0
"""How long a request of somebody else is waited for, which lies there untaken."""


def _who() -> str:
    try:
        return f"{getpass.getuser()}@{platform.node()}"
    except (KeyError, OSError):  # a user without a name, as in a container
        return f"user {os.getuid()}@{platform.node()}"


@dataclass(frozen=True)
class Asked:
    """What is asked of a run, and by whom."""

    do: Literal["save", "stop"]
    by: str = field(default_factory=_who)
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    pin: bool = False
    """Whether the checkpoint that it makes is pinned."""


def leave(folder: Path, asked: Asked) -> None:
    """Leaves a request in a run's folder; one of somebody else that lies there is waited for first. raises OSError"""
    ends = time.monotonic() + FREE_SECONDS
    while (folder / REQUEST).exists() and time.monotonic() < ends:
        time.sleep(0.02)
    files.write_atomic(folder / REQUEST, json.dumps(asdict(asked)))


def look(folder: Path) -> Asked | None:
    """The request that lies there; None where none does, or none that can be read, which is logged and removed."""
    path = folder / REQUEST
    try:
        os.stat(path)  # nearly all looks end here
    except OSError:
        return None
    try:
        return Asked(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:  # its command has just taken it back
        return None
    except (OSError, ValueError, TypeError) as error:
        log.warning("%s is no request (%s), and is removed", path, one_line(error))
        _remove(path)
        return None


def withdraw(folder: Path, asked: Asked | None = None) -> bool:
    """Takes a request back, or whatever lies there; whether it lay there."""
    lies = look(folder)
    if lies is None or asked not in (None, lies):
        return False
    _remove(folder / REQUEST)
    return True


def _remove(path: Path) -> None:
    """Removes it; where that may not be, as in a folder in which everyone owns his files alone, the run does not end by it."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s cannot be removed (%s): whoever left it has to", path, error.strerror)
