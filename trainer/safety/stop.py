"""Signals become a request to stop; the ranks agree on the step at which they answer it.

SIGTERM, SIGINT and SIGHUP (a closed terminal) only set a flag. Every step adds the ranks' flags into the one small tensor that is reduced anyway, so all of them
read the same sum for the same step and stop there together. Launchers repeat and forward signals, so a second one changes nothing; only a
Ctrl+C pressed again after a while ends the process at once.
"""

import logging
import signal
import time
from types import FrameType, TracebackType
from typing import Any

log = logging.getLogger(__name__)

IMPATIENCE_SECONDS = 5.0
"""A second SIGINT sooner than this is the same one, delivered twice."""


class StopRequest:
    """Catches signals while the block runs; the previous handlers come back after it."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    def __init__(self) -> None:
        self.reason: str | None = None
        """Which signal arrived, as a clause; None before."""
        self._asked_at: float | None = None
        self._previous: dict[int, Any] = {}

    @property
    def vote(self) -> float:
        """1.0 when this rank was asked to stop, else 0.0."""
        return 0.0 if self.reason is None else 1.0

    def __enter__(self) -> "StopRequest":
        for number in self.SIGNALS:
            if signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup: whoever started it wants this signal to pass by
            self._previous[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._asked_at is None:
            self._asked_at = now
            self.reason = f"{signal.Signals(number).name} was received"
        elif number == signal.SIGINT and now - self._asked_at > IMPATIENCE_SECONDS:
            raise KeyboardInterrupt
