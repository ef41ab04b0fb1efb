"""Which events of the journal a person is told of, and as what."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trainer.config.unattended import AlertKind
from trainer.ending.causes import SECOND_HAND, Cause

Event = Mapping[str, Any]


@dataclass(frozen=True)
class Alert:
    """One thing to be told."""

    kind: AlertKind
    event: Event
    """What the journal has of it."""


_KINDS: dict[str, Callable[[Event], AlertKind | None]] = {
    "start": lambda event: "precision" if event.get("instead_of") else None,
    "precision": lambda event: None if event.get("resumed") else "precision",
    "restart": lambda _: "restart",
    "gave_up": lambda _: "gave_up",
    "hang": lambda _: "hang",
    "rollback": lambda _: "rollback",
    "digest_differs": lambda _: "hardware",
    "recompute": lambda event: None if event.get("equal") else "hardware",
    "waiting": lambda event: "disk" if event.get("what") == "room" else "waiting",
    "save_failed": lambda _: "disk",
    "mirror": lambda event: "disk" if event.get("failure") else None,
    "slow": lambda _: "slow",
}
"""Each event of the journal that may be an alert; None: this one is none. How a launch ends is told by `Told` below."""

_ENDS: dict[Cause, AlertKind | None] = {
    Cause.FINISHED: "finished",
    Cause.DIVERGED: "diverged",
    Cause.DISK: "disk",
    Cause.NO_ROOM: "disk",
    Cause.HANG: None,  # the event `hang` has told it
    Cause.ROLLBACK: None,  # the event `rollback`
    Cause.INTERRUPTED: None,  # a person or a scheduler has asked for it
    Cause.SIGINT: None,
}
"""What the end of a launch is, by its cause; all others are crashes."""


class Told:
    """Takes the events of a run one after another, and gives those that a person is told of: of the ends of a launch's processes one."""

    def __init__(self) -> None:
        self._has_ended = False
        self._second_hand: Event | None = None

    def of(self, event: Event) -> Iterator[Alert]:
        """What is to be told once this event is known."""
        if event["event"] == "stop":
            yield from self._of_an_end(event)
            return
        if event["event"] in ("launch", "restart", "start", "gave_up"):
            yield from self.rest()
            self._has_ended = event["event"] == "gave_up"
        kind = _KINDS.get(event["event"], lambda _: None)(event)
        if kind is not None:
            yield Alert(kind, event)

    def rest(self) -> Iterator[Alert]:
        """What is to be told when no more will come of this launch: an end that only its second hands have told."""
        if self._second_hand is not None and not self._has_ended:
            yield Alert("crash", self._second_hand)
            self._has_ended = True
        self._second_hand = None

    def _of_an_end(self, event: Event) -> Iterator[Alert]:
        if self._has_ended:
            return
        if event.get("cause") in SECOND_HAND:
            self._second_hand = self._second_hand or event
            return
        self._has_ended, self._second_hand = True, None
        crash: AlertKind = "crash"
        kind = _ENDS.get(event.get("cause"), crash)  # type: ignore[arg-type]
        if kind is not None:
            yield Alert(kind, event)
