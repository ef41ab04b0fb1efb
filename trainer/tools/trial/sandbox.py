"""Where it takes place: a folder among the runs and one among the checkpoints, and what an attempt that was killed left of its own."""

import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trainer import files, locks
from trainer.config.folders import check_can_be_made
from trainer.config.schema import Config
from trainer.errors import LaunchError

_LOCK = ".lock"


@dataclass
class Sandbox:
    """Two folders of one name, on the disks that the run itself would use."""

    runs: Path
    checkpoints: Path
    is_kept: bool = False
    """Whether they stay at the end: there is something to be looked at."""

    @property
    def both(self) -> tuple[Path, Path]:
        return self.runs, self.checkpoints


@contextmanager
def sandbox_of(config: Config, command: str, say: Callable[[str], None]) -> Iterator[Sandbox]:
    """Makes `.COMMAND-*`, after those were swept that a killed command left, and removes them at the end unless they are kept."""
    runs, checkpoints = (files.project_folder() / folder for folder in (config.runs_folder, config.checkpoints_folder))
    for setting, folder in (("runs_folder", runs), ("checkpoints_folder", checkpoints)):
        check_can_be_made(setting, folder)
    with _explained(command, runs, checkpoints):
        swept = _sweep(f".{command}-", runs, checkpoints)
        sandbox, held = _make(f".{command}-", runs, checkpoints)
    try:
        for name in swept:
            say(f"removed {name}, which a {command} that was killed has left")
        yield sandbox
    finally:
        held.close()
        if sandbox.is_kept:
            (sandbox.runs / _LOCK).unlink()  # without it nobody sweeps it
        else:
            _remove(sandbox.both)


@contextmanager
def _explained(command: str, runs: Path, checkpoints: Path) -> Iterator[None]:
    """A disk that takes nothing becomes a LaunchError."""
    try:
        yield
    except OSError as error:
        raise LaunchError(
            f"there is no place for a {command} in {runs} and {checkpoints} ({error.strerror}); make room there, fix that disk or the rights on it, or "
            "set runs_folder and checkpoints_folder to another"
        ) from error


def _make(prefix: str, runs: Path, checkpoints: Path) -> tuple[Sandbox, locks.Lock]:
    """Makes both folders, and holds them; leaves nothing where that fails. raises OSError"""
    runs.mkdir(parents=True, exist_ok=True)
    home = Path(tempfile.mkdtemp(prefix=prefix, dir=runs))
    sandbox = Sandbox(home, checkpoints / home.name)
    try:
        held = locks.take(home / _LOCK)
        assert held is not None, "nobody else knows its name"
        sandbox.checkpoints.mkdir(parents=True)
    except OSError:
        _remove(sandbox.both)
        raise
    return sandbox, held


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """A SIGTERM or a closed terminal leaves this block as Ctrl+C does, so that nothing is left running."""

    def end(number: int, _frame: object) -> None:
        sys.exit(128 + number)

    previous = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, earlier in previous.items():
            signal.signal(number, earlier)


def _sweep(prefix: str, runs: Path, checkpoints: Path) -> list[str]:
    """Removes the folders of commands that ended without removing them; returns their names. Where something still runs they stay."""
    swept = []
    for home in sorted(runs.glob(f"{prefix}*")):
        both = (home, checkpoints / home.name)
        taken = [home / _LOCK, *(path for folder in both for path in folder.glob(f"*/{_LOCK}"))]
        if taken[0].is_file() and not any(locks.is_held(path) for path in taken):
            _remove(both)
            swept.append(home.name)
    return swept


def _remove(both: tuple[Path, Path]) -> None:
    """Removes both, the one with the lock last: a removal that is cut short is begun again by the next sweep."""
    for folder in reversed(both):
        if folder.exists():
            files.remove_folder(folder)
