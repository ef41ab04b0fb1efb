"""What a run's curve comes to, in one pass over metrics.jsonl: the records of a month are never in memory together."""

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.metrics.curves import records_from

NUM_RECENT = 20
"""Steps whose mean is the training loss at the end."""


@dataclass
class Totals:
    """Of a whole run, over all its launches; what was lost and taken again counts once."""

    step: int = 0
    """Of the last record."""
    tokens: int = 0
    """Trained on by the last step; 0 when there is no step."""
    seconds: float = 0.0
    """Of training, without evaluations and saves."""
    recent_losses: deque[float] = field(default_factory=lambda: deque(maxlen=NUM_RECENT))
    """Of the last steps, nats a token; those that are no number are left out."""
    first_evaluation: dict[str, Any] | None = None
    last_evaluation: dict[str, Any] | None = None
    newest: dict[str, Any] = field(default_factory=dict)
    """The newest value of each number that evaluations have had; tasks have their own interval."""

    @property
    def tokens_per_second(self) -> float | None:
        """Of all processes, over the whole run; None where no time was written down."""
        return self.tokens / self.seconds if self.seconds else None

    def add(self, record: dict[str, Any]) -> None:
        """Takes the next record."""
        self.step = record["step"]
        if "loss" in record:
            self.tokens = record.get("tokens", self.tokens)
            self.seconds += record.get("step_seconds", 0.0)
            if record["loss"] is not None:
                self.recent_losses.append(record["loss"])
        if "val_loss" in record:
            self.first_evaluation = self.first_evaluation or record
            self.last_evaluation = record
            self.newest.update(record)


def totals_of(curve: Path) -> Totals:
    """What a curve comes to; an absent or damaged one as far as it goes."""
    totals = Totals()
    for _, record in records_from(curve, 0):
        totals.add(record)
    return totals
