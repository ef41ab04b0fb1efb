"""What a run's curve comes to, from its index and its end: the records of a month are never in memory together."""

from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from trainer.metrics.curves import records_backward
from trainer.metrics.index import Block, scan

NUM_RECENT = 20
"""Steps whose mean is the training loss at the end."""

_LOOKED_BACK = 10_000
"""Records among which they are looked for."""


@dataclass
class Totals:
    """Of a whole run, over all its launches; what was lost and replayed counts once."""

    step: int = 0
    """Of the last record."""
    tokens: int = 0
    """Trained on by the last step; 0 when there is no step."""
    seconds: float = 0.0
    """Of training, without evaluations and saves."""
    evaluation_seconds: float = 0.0
    recent_losses: list[float] = field(default_factory=list)
    """Of the last steps, nats per token; those that are not finite are left out."""
    first_evaluation: dict[str, Any] | None = None
    last_evaluation: dict[str, Any] | None = None
    newest: dict[str, Any] = field(default_factory=dict)
    """The newest value of each number that evaluations have had; tasks have their own interval."""

    @property
    def tokens_per_second(self) -> float | None:
        """Of all processes, over the whole run; None where no time was written down."""
        return self.tokens / self.seconds if self.seconds else None

    def add(self, found: Block | dict[str, Any]) -> None:
        """Takes the next block or record."""
        if isinstance(found, Block):
            self._add_steps(found.step, found.tokens, found.seconds)
            for record in found.evaluations:
                self._add_evaluation(record)
            return
        self.step = found["step"]
        if "loss" in found:
            self._add_steps(found["step"], found.get("tokens"), found.get("step_seconds"))
        self._add_evaluation(found)

    def _add_steps(self, step: int, tokens: int | None, seconds: float | None) -> None:
        self.step = step
        self.tokens = self.tokens if tokens is None else tokens
        self.seconds += seconds or 0.0

    def _add_evaluation(self, record: dict[str, Any]) -> None:
        if "val_loss" in record:
            self.evaluation_seconds += record.get("seconds") or 0.0
            self.first_evaluation = self.first_evaluation or record
            self.last_evaluation = record
            self.newest.update(record)


def totals_of(curve: Path) -> Totals:
    """What a curve comes to; an absent or damaged one as far as it goes."""
    totals = Totals()
    for found in scan(curve):
        totals.add(found)
    losses = (record.get("loss") for _, record in islice(records_backward(curve), _LOOKED_BACK))
    totals.recent_losses = list(islice((loss for loss in losses if loss is not None), NUM_RECENT))[::-1]
    return totals
