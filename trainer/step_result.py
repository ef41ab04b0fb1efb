"""What every rank knows of a step once the ranks have agreed on it: pure data, read by loop, guard, checkpointer and reporter."""

from dataclasses import dataclass
from enum import IntEnum


class SaveRequest(IntEnum):
    """What rank 0 asks the ranks to do together after a step; of several the highest counts."""

    NONE = 0
    SNAPSHOT = 1
    """Copy the state into memory."""
    WRITE = 2
    """Write a checkpoint to the disk."""
    GIVE_UP = 3
    """End the run, because too many saves in a row have failed."""


@dataclass(frozen=True)
class StepResult:
    """The result of one step, the same on every rank."""

    step: int
    loss: float
    """Mean over the global batch, nats per token."""
    grad_norm: float
    """Total norm before clipping."""
    stop_votes: int
    """How many ranks had been asked to stop by then."""
    save_request: SaveRequest
    aux_loss: float | None = None
    """Of the routers of a model with experts, without its coefficient: mean over the micro-batches of all ranks; `loss` has its part of it."""
    save_votes: int = 0
    """How many ranks had been asked for a checkpoint by then, and had not answered."""

    @property
    def needs_answer(self) -> bool:
        """Whether it asks the ranks to stop or to save."""
        return bool(self.stop_votes or self.save_votes or self.save_request)
