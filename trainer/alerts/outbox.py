"""How often a person is told: at most one message of a kind in some minutes, and none is lost by that."""

from dataclasses import dataclass

from trainer.config.unattended import AlertKind

AT_ONCE: frozenset[AlertKind] = frozenset({"finished", "diverged", "gave_up", "daily"})
"""Kinds that are told whenever they happen: after them nothing more comes, or they are rare."""


@dataclass(frozen=True)
class Message:
    """What one target is sent."""

    run: str
    kind: str
    """Of config/unattended.py, or `test`."""
    text: str
    """A line, or a few."""

    @property
    def title(self) -> str:
        """The run and the kind of what happened: `mine: gave up`."""
        return f"{self.run}: {self.kind.replace('_', ' ')}"


class Outbox:
    """Holds back what is told too often; of several of a kind that were held back one message is made."""

    def __init__(self, run: str, seconds: float) -> None:
        """seconds: the least time between two messages of a kind"""
        self._run, self._seconds = run, seconds
        self._next_at: dict[AlertKind, float] = {}
        self._held: dict[AlertKind, list[str]] = {}

    def put(self, kind: AlertKind, text: str) -> None:
        self._held.setdefault(kind, []).append(text)

    def take(self, now: float, *, all_of_it: bool = False) -> list[Message]:
        """The messages to be sent at this moment of the monotonic clock, the longest held first; all: what is held back, too."""
        due = [kind for kind in self._held if all_of_it or kind in AT_ONCE or now >= self._next_at.get(kind, now)]
        messages = []
        for kind in due:
            texts = self._held.pop(kind)
            self._next_at[kind] = now + self._seconds
            more = f" ({len(texts)} times since the last message; this is the last of them)" if len(texts) > 1 else ""
            messages.append(Message(self._run, kind, texts[-1] + more))
        return messages
