"""When to evaluate, and what came of it: the last and the best validation loss survive a restart."""

import logging
import math
from typing import Any

from trainer.config.schema import EvaluationConfig
from trainer.evaluation.samples import samples_due

log = logging.getLogger(__name__)


class EvalSchedule:
    """Knows when an evaluation, tasks and samples are due, and whether a loss is the best so far; a part of the TrainState."""

    def __init__(self, settings: EvaluationConfig, max_steps: int, validation: str | None) -> None:
        """`validation` is the fingerprint of the held-out data: losses on other data do not compare. None: there is none."""
        self._settings, self._max_steps, self._validation = settings, max_steps, validation
        self.last_step: int | None = None
        self.last_loss: float | None = None
        self.best_step: int | None = None
        self.best_loss: float | None = None

    def due(self, step: int) -> bool:
        """Every n-th step and after the last one, but not twice at one step, and never without held-out data."""
        if self._validation is None:
            return False
        return (step % self._settings.every_steps == 0 or step == self._max_steps) and step != self.last_step

    def tasks_due(self, step: int) -> bool:
        """Of the steps that have an evaluation, those whose evaluation asks the tasks too."""
        every_steps = self._settings.tasks_every_steps or self._settings.every_steps
        return step % every_steps == 0 or step == self._max_steps

    def samples_due(self, step: int) -> bool:
        """Whether the model writes samples after this step, or has just been evaluated at it and does so then."""
        is_evaluated = self.due(step) or self.last_step == step
        return samples_due(self._settings, step, self._max_steps, is_evaluated)

    def record(self, step: int, loss: float) -> bool:
        """Takes a validation loss; returns whether it is the lowest so far."""
        self.last_step, self.last_loss = step, loss if math.isfinite(loss) else None
        is_best = math.isfinite(loss) and (self.best_loss is None or loss < self.best_loss)
        if is_best:
            self.best_step, self.best_loss = step, loss
        return is_best

    def is_not_finite_at(self, step: int) -> bool:
        """Whether exactly this step was evaluated, and its validation loss is not finite."""
        return self.last_step == step and self.last_loss is None

    def loss_at(self, step: int) -> float | None:
        """The validation loss of exactly this step, None when it was not evaluated."""
        return self.last_loss if self.last_step == step else None

    def state_dict(self) -> dict[str, Any]:
        return {
            "validation": self._validation,
            "last_step": self.last_step,
            "last_loss": self.last_loss,
            "best_step": self.best_step,
            "best_loss": self.best_loss,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["validation"] != self._validation:
            log.warning("the validation data is not what it was: the best validation loss starts over")
            return
        self.last_step, self.last_loss = state["last_step"], state["last_loss"]
        self.best_step, self.best_loss = state["best_step"], state["best_loss"]
