"""Reads a run's journal beside the training, and sends what a person is told of: one thread that reads, and one a target that sends."""

import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from trainer.alerts.kinds import Told
from trainer.alerts.outbox import Message, Outbox
from trainer.alerts.targets import DeliveryError, Target
from trainer.config.unattended import AlertsConfig
from trainer.journal import JOURNAL, Journal, parse_event

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""Between two looks at the journal."""

RETRY_SECONDS = (2.0, 10.0, 60.0, 300.0, 900.0)
"""Waits before the second and each further attempt; after the last a message is given up."""

ATTEMPTS_AT_THE_END = 3
"""For a message, once the launch has ended."""

LONGEST_WAIT_SECONDS = 900.0
"""Of what a server may ask for by Retry-After."""

END_SECONDS = 15.0
"""How long the end of a launch waits for messages that are under way."""

MAX_WAITING = 1000
"""Messages that may wait for one target; further ones are given up."""


@dataclass(frozen=True)
class Words:
    """What a message says, by whoever knows it."""

    of_event: Callable[[Mapping[str, Any]], str]
    of_the_day: Callable[[], str]
    """The daily line."""


@contextmanager
def watching(
    folder: Path, settings: AlertsConfig, targets: Sequence[Target], words: Words, *, end_seconds: float = END_SECONDS
) -> Iterator[None]:
    """While the block runs, these targets are told of what the journal in `folder` gets from now on.

    end_seconds  how long the end of the block waits for messages that are under way
    """
    if not targets:
        yield
        return
    watch = _Watch(folder, settings, targets, words)
    watch.start()
    try:
        yield
    finally:
        watch.end(end_seconds)


class _Watch:
    def __init__(self, folder: Path, settings: AlertsConfig, targets: Sequence[Target], words: Words) -> None:
        self._run, self._settings, self._words = folder.name, settings, words
        self._tail, self._told = Tail(folder / JOURNAL), Told()
        self._outbox = Outbox(self._run, 60.0 * settings.every_minutes)
        self._senders = [Sender(target, Journal(folder)) for target in targets]
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="alerts", daemon=True)
        self._daily = Daily(settings.daily_hour, datetime.now())

    def start(self) -> None:
        self._thread.start()

    def end(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        self._end.set()
        self._thread.join(max(0.0, ends - time.monotonic()))
        for sender in self._senders:
            sender.end(ends)

    def _watch(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._end.wait(LOOK_SECONDS)
            try:
                self._look(is_last)
            except Exception as error:  # a journal or a curve in a state nobody foresaw is no end of the alerts
                log.warning("the alerts could not look at the run (%s: %s)", type(error).__name__, error)

    def _look(self, is_last: bool) -> None:
        alerts = [alert for event in self._tail.read() for alert in self._told.of(event)]
        for alert in [*alerts, *(self._told.rest() if is_last else ())]:
            if alert.kind in self._settings.events:
                self._outbox.put(alert.kind, f"{self._words.of_event(alert.event)} (on {socket.gethostname()})")
        if "daily" in self._settings.events and self._daily.is_due(datetime.now()):
            self._outbox.put("daily", self._words.of_the_day())
        for message in self._outbox.take(time.monotonic(), all_of_it=is_last):
            for sender in self._senders:
                sender.put(message)


class Tail:
    """What a file of lines gets from now on; a line that is half written comes with the next look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = path.stat().st_size if path.is_file() else 0

    def read(self) -> list[dict[str, Any]]:
        """The events since the last look."""
        try:
            with open(self._path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < self._position:  # another file took its place
                    self._position = size
                file.seek(self._position)
                new = file.read()
        except OSError:
            return []
        whole = new[: new.rfind(b"\n") + 1]
        self._position += len(whole)
        return [event for line in whole.splitlines() if (event := parse_event(line)) is not None]


class Daily:
    """When the line of the day is due: at an hour of the machine's clock, once a day."""

    def __init__(self, hour: int, now: datetime) -> None:
        self._hour = hour
        self._last = self._day(now)

    def is_due(self, now: datetime) -> bool:
        day = self._day(now)
        is_due, self._last = day > self._last, max(day, self._last)
        return is_due

    def _day(self, now: datetime) -> int:
        """The day, which begins at that hour, by its number."""
        return (now - timedelta(hours=self._hour)).toordinal()


class Sender:
    """Sends messages to one target, in a thread of its own, and tries again where one does not arrive."""

    def __init__(self, target: Target, journal: Journal) -> None:
        self._target, self._journal = target, journal
        self._queue: queue.Queue[Message | None] = queue.Queue()
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._send_all, name=f"alerts to {target.name}", daemon=True)
        self._under_way: Message | None = None
        self._thread.start()

    def put(self, message: Message) -> None:
        if self._queue.qsize() < MAX_WAITING:
            self._queue.put(message)
        else:
            self._give_up(message, "too many wait already", 0)

    def end(self, at: float) -> None:
        """Sends what waits, without long waits for further attempts, until this moment of the monotonic clock; the rest is given up."""
        self._queue.put(None)
        self._ends.set()
        self._thread.join(max(0.0, at - time.monotonic()))
        if not self._thread.is_alive():
            return
        left = [self._under_way] if self._under_way else []
        while not self._queue.empty():
            message = self._queue.get()
            left += [message] if message else []
        for message in left:
            self._give_up(message, "it was not delivered when the launch ended", 0)

    def _send_all(self) -> None:
        while (message := self._queue.get()) is not None:
            self._under_way = message
            self._send(message)
            self._under_way = None

    def _send(self, message: Message) -> None:
        for number, wait in enumerate((*RETRY_SECONDS, None), 1):
            try:
                self._target.send(message)
                return
            except DeliveryError as error:
                if wait is None or error.is_final or (self._ends.is_set() and number >= ATTEMPTS_AT_THE_END):
                    self._give_up(message, str(error), number)
                    return
                if self._ends.is_set():
                    time.sleep(RETRY_SECONDS[0])
                else:
                    self._ends.wait(min(max(wait, error.retry_after or 0.0), LONGEST_WAIT_SECONDS))
            except Exception as error:  # of a target in a state nobody foresaw; its words may hold a secret
                self._give_up(message, type(error).__name__, number)
                return

    def _give_up(self, message: Message, failure: str, attempts: int) -> None:
        log.warning("an alert was not sent (%s): %s", self._target.name, failure)
        facts = {"target": self._target.name, "failure": failure, "attempts": attempts}
        self._journal.write("alert_failed", kind=message.kind, text=message.text, **facts)
