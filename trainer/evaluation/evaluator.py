"""When to evaluate, and what came of it: the last and the best validation loss survive a restart."""

import math
from typing import Any


class Evaluator:
    """Knows when an evaluation is due and whether its result is the best so far; a part of the TrainState."""

    def __init__(self, every_steps: int, max_steps: int) -> None:
        self._every_steps, self._max_steps = every_steps, max_steps
        self.last_step: int | None = None
        self.last_loss: float | None = None
        self.best_step: int | None = None
        self.best_loss: float | None = None

    def due(self, step: int) -> bool:
        """Every n-th step and after the last one, but not twice at one step."""
        return (step % self._every_steps == 0 or step == self._max_steps) and step != self.last_step

    def record(self, step: int, loss: float) -> bool:
        """Takes a validation loss; returns whether it is the lowest so far."""
        self.last_step, self.last_loss = step, loss
        is_best = math.isfinite(loss) and (self.best_loss is None or loss < self.best_loss)
        if is_best:
            self.best_step, self.best_loss = step, loss
        return is_best

    def loss_at(self, step: int) -> float | None:
        """The validation loss of exactly this step, None when it was not evaluated."""
        return self.last_loss if self.last_step == step else None

    def state_dict(self) -> dict[str, Any]:
        return {
            "last_step": self.last_step, "last_loss": self.last_loss, "best_step": self.best_step, "best_loss": self.best_loss,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.last_step, self.last_loss = state["last_step"], state["last_loss"]
        self.best_step, self.best_loss = state["best_step"], state["best_loss"]
