"""What people and clocks ask of a run while it goes on; the ranks agree on the step at which they answer it.

    SIGTERM, SIGINT, SIGHUP (a closed terminal)   stop   sent to any rank
    SIGUSR1                                       save   sent to any rank
    `trainer stop`, `trainer save`                       by a file that rank 0 looks for (request_file.py)
    max_hours                                     stop   by rank 0's clock (time_limit.py)

Each only sets a flag. Every step adds the ranks' flags into the one small tensor that is reduced anyway, so all of them read the same sum for
the same step and answer it together. Launchers repeat and forward signals, so a second one to stop changes nothing; only a Ctrl+C
pressed again after a while ends the process at once.
"""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from trainer.journal import Journal
from trainer.safety import request_file
from trainer.safety.request_file import Asked
from trainer.safety.time_limit import TimeLimit

IMPATIENCE_SECONDS = 5.0
"""A second SIGINT sooner than this is the same one, delivered twice."""

REPEATED_SECONDS = 0.2
"""A SIGUSR1 so soon after a save is the one that it answered: all ranks are sent it, and one hears it late."""


class Requests:
    """Catches signals while the block runs, and looks for what else is asked; the previous handlers come back after it."""

    STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    def __init__(self, folder: Path | None = None, limit: TimeLimit | None = None) -> None:
        """`folder` of the run and `limit`: on rank 0, which looks at them for all; None on the others."""
        self.stop_reason: str | None = None
        """Why this rank is asked to stop, as a clause; None: it is not."""
        self._saves: list[Asked] = []
        self._saved_at = -REPEATED_SECONDS
        self._folder, self._limit = folder, limit
        self._journal = Journal(folder) if folder else None
        self._last_id: str | None = None
        self._asked_at: float | None = None
        self._previous: dict[int, Any] = {}

    # What is asked

    def look(self, step: int, save_seconds: Callable[[], float] = lambda: 0.0) -> None:
        """Takes up what lies in the run's folder, and sees what the clock says; on rank 0, after each step, before its votes.

        save_seconds  what a save takes, as far as it was measured
        """
        if self._folder is not None and (asked := request_file.look(self._folder)) and asked.id != self._last_id:
            self._last_id = asked.id  # where it cannot be removed, it is answered once
            request_file.withdraw(self._folder, asked)
            if asked.do == "save":
                self._saves.append(asked)
            else:
                self._stop(f"{asked.by} has asked for it by the command `stop`")
                self._answer(asked, step)
        if self._limit is not None and self._limit.is_near(time.monotonic(), save_seconds()):
            self._stop(f"max_hours {self._limit.hours:g} are over, but for the time of this save")

    @property
    def stop_vote(self) -> float:
        """1.0 when this rank was asked to stop, else 0.0."""
        return 0.0 if self.stop_reason is None else 1.0

    @property
    def save_vote(self) -> float:
        """1.0 when this rank was asked to save and has not answered, else 0.0."""
        return 1.0 if self._saves else 0.0

    @property
    def pins(self) -> bool:
        """Whether the checkpoint that answers is to be pinned; known on rank 0."""
        return any(asked.pin for asked in self._saves)

    def answer_saves(self, step: int, *, is_saved: bool) -> None:
        """This step was saved, or could not be."""
        self._saved_at = time.monotonic()
        while self._saves:  # a signal may add to it meanwhile
            self._answer(self._saves.pop(), step, saved=is_saved)

    def _answer(self, asked: Asked, step: int, **facts: Any) -> None:
        if self._journal is not None:
            self._journal.write("request", do=asked.do, step=step, by=asked.by, id=asked.id, **facts)

    # Signals

    def __enter__(self) -> "Requests":
        for number in self.STOPS:
            if signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup: whoever started it wants this signal to pass by
            self._previous[number] = signal.signal(number, self._ask_to_stop)
        self._previous[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self._ask_to_save)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _stop(self, reason: str) -> None:
        if self.stop_reason is None:
            self.stop_reason = reason
            self._asked_at = time.monotonic()

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        if self._asked_at is None:
            self._stop(f"{signal.Signals(number).name} was received")
        elif number == signal.SIGINT and time.monotonic() - self._asked_at > IMPATIENCE_SECONDS:
            raise KeyboardInterrupt

    def _ask_to_save(self, number: int, frame: FrameType | None) -> None:
        if time.monotonic() - self._saved_at >= REPEATED_SECONDS:
            self._saves.append(Asked("save", by=signal.Signals(number).name))
