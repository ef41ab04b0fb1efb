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


class Verdict(IntEnum):
    """What the numbers of a step are, by the numbers of those before it."""

    ACCEPTED = 0
    SPIKE = 1
    """Loss or gradient norm stand far above what was usual."""
    NEW_LEVEL = 2
    """So they did in too many steps in a row: it is what is usual from here on."""
    NOT_FINITE = 3


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

    verdict: Verdict = Verdict.ACCEPTED
    score: float = 0.0
    """How far loss or gradient norm stand above the usual, in usual spreads."""

    @property
    def needs_answer(self) -> bool:
        """Whether it asks the ranks to stop or to save."""
        return bool(self.stop_votes or self.save_votes or self.save_request)
