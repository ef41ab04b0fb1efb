"""The signals of the process that a person started, passed on to the launcher below it and to the ranks.

    SIGTERM, SIGINT, SIGHUP, SIGQUIT   the run stops after its step, with a checkpoint; only the first is passed on, since a second one ends a
                                       launcher's wait for the last save
    SIGINT again                       Ctrl+C pressed again: all are killed at once, but for the writer, which commits what it has in memory
    SIGUSR1, SIGUSR2                   the run saves; each rank writes its stacks (stacks.py)

SIGQUIT goes on as SIGTERM, since a process that does not handle it yet would dump its core.
"""

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, Self

import psutil

from trainer.safety.stacks import send_if_caught
from trainer.streams import say

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""What asks a launch to stop: a scheduler, Ctrl+C, a closed terminal, Ctrl+\\."""

ASKS = (signal.SIGUSR1, signal.SIGUSR2)
"""What asks a run for something while it goes on."""

REPEATED_SECONDS = 1.0
"""A second SIGINT sooner than this is the same one: a terminal and a wrapper may both deliver it."""

AGAIN = "stopping after this step, with a checkpoint; Ctrl+C again stops at once"


@contextmanager
def handling(numbers: Sequence[int], handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Gives signals to a handler; one that is ignored, as under nohup, stays ignored."""
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, earlier in previous.items():
            signal.signal(number, earlier)


class Child(Protocol):
    """A process that this one has started, as subprocess.Popen has it."""

    pid: int

    def send_signal(self, sig: int, /) -> None:
        """Nothing happens where it has ended."""


class Forwarding:
    """Passes signals on while the block runs, to the child that it is given, and to the next one where that is started again."""

    def __init__(self) -> None:
        self.stopped_by: int | None = None
        """The signal that asked for a stop; None before."""
        self.was_cut = False
        """Whether a second Ctrl+C has killed the launch."""
        self._asked_at = 0.0
        self._child: Child | None = None
        self._stack = ExitStack()

    @property
    def was_stopped(self) -> bool:
        return self.stopped_by is not None

    def __enter__(self) -> Self:
        self._stack.enter_context(handling(STOPS, self._stop))
        self._stack.enter_context(handling(ASKS, self._ask))
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()

    def to(self, child: Child | None) -> None:
        """From here on this child is the one; a stop that came before it is passed on now: no instant leaves it behind.

        None: it has ended, and its number may be another process's by now.
        """
        self._child = child
        if child is not None and self.stopped_by is not None:
            child.send_signal(self.stopped_by)

    def _stop(self, number: int, _frame: object) -> None:
        if self.stopped_by is None:
            self.stopped_by = signal.SIGTERM if number == signal.SIGQUIT else number
            self._asked_at = time.monotonic()
            if self._child is not None:
                self._child.send_signal(self.stopped_by)
            if number == signal.SIGINT:
                say(AGAIN)
        elif number == signal.SIGINT and time.monotonic() - self._asked_at >= REPEATED_SECONDS:
            self.was_cut = True
            if self._child is not None:
                kill_launch(self._child.pid)

    def _ask(self, number: int, _frame: object) -> None:
        if self._child is not None:
            send_if_caught(self._child.pid, number)


def kill_launch(launcher: int) -> None:
    """Kills a launcher and the ranks below it. A rank's writer, which is no child of the launcher, lives on and commits what it has."""
    processes = _children(launcher)
    for pid in (launcher, *processes):  # the launcher first, which would take the ranks' end for a failure
        try:
            psutil.Process(pid).kill()
        except psutil.NoSuchProcess:
            pass


def pass_to_children() -> None:
    """From here on this process, a launcher, passes SIGUSR1 and SIGUSR2 on to the ranks below it."""

    def pass_on(number: int, _frame: object) -> None:
        for pid in _children(psutil.Process().pid):
            send_if_caught(pid, number)

    for number in ASKS:
        signal.signal(number, pass_on)


def _children(pid: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children()]
    except psutil.NoSuchProcess:
        return []
