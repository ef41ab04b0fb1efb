"""A launch that is watched from outside, and killed or seen through: by its curve, its journal and the system's table of processes."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import psutil

from trainer.ending.outcome_file import read_outcome
from trainer.ending.outcomes import Outcome
from trainer.errors import LaunchError
from trainer.journal import JOURNAL
from trainer.metrics.curves import CURVE
from trainer.safety.parent import STARTED_BY
from trainer.text import duration

WRITER = "trainer.checkpoint.save.writer"
_TAIL_BYTES = 8192
_LAST_LINES = 5


class Launchable(Protocol):
    """A launch that was checked: what launcher.check_launch returns."""

    @property
    def command(self) -> list[str]: ...
    @property
    def environment(self) -> dict[str, str]: ...
    @property
    def folder(self) -> Path: ...


class TrackedLaunch:
    """One launch of a run, in a session of its own; what it prints goes to a file."""

    def __init__(self, plan: Launchable, log: Path, *, limit_seconds: float, look_seconds: float = 0.005) -> None:
        """`limit_seconds`: after them it counts as hanging, and whoever waits for it gets a LaunchError. It is looked at every `look_seconds`."""
        self._folder, self._log, self._limit_seconds, self._look_seconds = plan.folder, log, limit_seconds, look_seconds
        self._num_resumes = _num_resumes(self._folder)
        self._writers: list[psutil.Process] = []
        self._began = time.monotonic()
        with open(log, "ab") as output:
            self._process = subprocess.Popen(
                plan.command,
                env={**plan.environment, STARTED_BY: str(os.getpid())},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def seconds(self) -> float:
        """Since the command."""
        return time.monotonic() - self._began

    @property
    def code(self) -> int | None:
        """The launcher's exit code; None while it runs."""
        return self._process.poll()

    def wait_for_resume(self, reached: int) -> float | None:
        """Seconds until it stands at a checkpoint again; None when it did not, and went beyond `reached` or ended."""
        self.wait_until(lambda: _num_resumes(self._folder) > self._num_resumes or last_step(self._folder) > reached)
        return self.seconds if _num_resumes(self._folder) > self._num_resumes else None

    def wait_for_step(self, step: int) -> bool:
        """Waits until this step was taken; False when the launch ended before."""
        return self.wait_until(lambda: last_step(self._folder) >= step)

    def wait_until(self, happened: Callable[[], bool]) -> bool:
        """Looks until it happened, or the launch ended: False. raises LaunchError when the launch hangs"""
        while not happened() and self._process.poll() is None:
            if self.seconds > self._limit_seconds:
                error = LaunchError(
                    f"the {self._folder.name} launch hangs: it should have ended long ago, and after {duration(self._limit_seconds)} stands at "
                    f"step {last_step(self._folder)}; it is ended. What it printed is kept in {self._log}: fix that, and start again"
                )
                error.exit_code = 1
                raise error
            time.sleep(self._look_seconds)
        return self._process.poll() is None

    def wait(self) -> int:
        """Waits for its end; returns the launcher's exit code. raises LaunchError when it hangs"""
        self.wait_until(lambda: False)
        return self._process.wait()

    def kill(self, *, with_writer: bool) -> bool:
        """SIGKILL to every process of the launch at one instant; returns whether a writer was among them.

        They are stopped first, so that none sees another one die and does something about it.
        """
        family = _family(self._process.pid)
        writers = [process for process in family if _is_writer(process)]
        doomed = family if with_writer else [process for process in family if process not in writers]
        for process in doomed:
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        for process in doomed:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        self._writers += writers
        return with_writer and bool(writers)

    def clear_away(self) -> None:
        """Leaves no process of this launch behind, the writer that outlived it included."""
        if self._process.poll() is None:
            self.kill(with_writer=True)
        for writer in self._writers:
            with suppress(psutil.NoSuchProcess):
                writer.kill()
        psutil.wait_procs(self._writers, timeout=10)


def _family(pid: int) -> list[psutil.Process]:
    """A process and all below it; each rank is in a session of its own, so there is no group that holds them all."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _is_writer(process: psutil.Process) -> bool:
    try:
        return WRITER in process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False


def cannot_run(folder: Path, problem: str, log: Path) -> LaunchError:
    """The error of a run that fails before anything was tried on it; its exit code is 2 where the launch itself refused the run."""
    outcome = read_outcome(folder)
    error = LaunchError(f"{problem}; fix that first. What it printed is kept in {log}")
    error.exit_code = 2 if outcome and outcome["outcome"] == Outcome.REFUSED else 1
    return error


def how_it_failed(folder: Path, log: Path, code: int) -> str:
    """How a launch ended that should not have: in its own words, or with the last that it printed."""
    outcome = read_outcome(folder)
    if outcome and outcome["outcome"] not in (Outcome.RUNNING, Outcome.FINISHED):
        return f"ended as {outcome['outcome']} ({outcome['reason']})"
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    printed = " / ".join([line.strip() for line in lines if line.strip()][-_LAST_LINES:])
    return f"ended with exit code {code} ({printed or 'it printed nothing'})"


def last_step(folder: Path) -> int:
    """The last step in a run's curve; 0 when there is none. Reads the end of the file only, since it is looked at often."""
    path = folder / CURVE
    if not path.is_file():
        return 0
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
        lines = file.read().split(b"\n")[:-1]
    return max((step for line in lines if (step := _step_of(line)) is not None), default=0)


def _step_of(line: bytes) -> int | None:
    """The step of one record; None for a line that begins before the part that was read."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None


def _num_resumes(folder: Path) -> int:
    """How often the journal says that the run went on from a checkpoint."""
    path = folder / JOURNAL
    return path.read_bytes().count(b'"event": "resume"') if path.is_file() else 0
