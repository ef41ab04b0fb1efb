"""The Python stacks of a run's processes, which SIGUSR2 has them add to runs/NAME/stacks/: also of one that is stuck in C.

faulthandler writes them within the signal's handler, which is C and waits for no lock. It knows no time: who asks notes that (`gather`).
"""

import faulthandler
import os
import signal
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

STACKS = "stacks"
"""The folder of these files in runs/NAME."""

STILL_SECONDS = 0.3
"""A file that has not grown for so long is whole."""

_LOOK_SECONDS = 0.05


def stacks_file(folder: Path, rank: int) -> Path:
    """Where a rank's stacks go, of the run in this folder."""
    return folder / STACKS / f"rank-{rank}.txt"


def write_on_signal(folder: Path, rank: int) -> None:
    """From here on SIGUSR2 adds the stacks of all threads of this process to its file, and changes nothing else. raises OSError"""
    path = stacks_file(folder, rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Opened once and kept: faulthandler writes to the number of an open file.
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(file, f"\nprocess {os.getpid()}, rank {rank}, {_now()}: SIGUSR2 adds its stacks here\n\n".encode())
    faulthandler.register(signal.SIGUSR2, file=file, all_threads=True, chain=False)


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal: any other would end by SIGUSR1 and SIGUSR2."""
    try:
        status = Path("/proc", str(pid), "status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    caught = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), "0")
    return bool(int(caught, 16) >> (number - 1) & 1)


def send_if_caught(pid: int, number: int) -> bool:
    """Sends a signal to a process that has a handler for it; whether it was sent."""
    if not catches(pid, number):
        return False
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def gather(folder: Path, ranks: Mapping[int, int], *, seconds: float = 5.0, wake: bool = False) -> dict[int, str]:
    """Asks the processes of a run for their stacks; what each has written by then, by its rank.

    One that has not begun its run, waits within the system, or is stopped writes nothing, and is left out.

    ranks    the process of each rank
    seconds  how long is waited
    wake     whether one that is stopped (SIGSTOP) goes on for it, and trains on
    """
    before = {rank: _size(stacks_file(folder, rank)) for rank in ranks}
    asked = [rank for rank, pid in ranks.items() if send_if_caught(pid, signal.SIGUSR2)]
    for rank in asked if wake else ():
        os.kill(ranks[rank], signal.SIGCONT)
    sizes, moved_at = before, time.monotonic()
    ends = moved_at + seconds
    while time.monotonic() < ends:
        now = {rank: _size(stacks_file(folder, rank)) for rank in asked}
        if any(now[rank] != sizes[rank] for rank in asked):
            sizes, moved_at = now, time.monotonic()
        if all(sizes[rank] > before[rank] for rank in asked) and time.monotonic() - moved_at >= STILL_SECONDS:
            break
        time.sleep(_LOOK_SECONDS)
    written = {rank: _read_from(stacks_file(folder, rank), before[rank]) for rank in asked}
    return {rank: text for rank, text in written.items() if text}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _read_from(path: Path, start: int) -> str:
    try:
        return path.read_bytes()[start:].decode("utf-8", errors="replace")
    except OSError:
        return ""
