"""When a run has diverged: too many gradients in a row that are not finite (the device skips them), or a loss that has left for good.

It knows the last usual loss too: a run that has diverged went wrong after that.
"""

import logging
import math
import statistics
from collections import deque
from typing import Any

log = logging.getLogger(__name__)

SKIPS_IN_DOUBT = 3
"""A run that ends with this many skipped steps in a row has diverged: its weights may be worthless."""


class UsualLoss:
    """Which losses are usual after those before them: a run that ends as diverged went wrong after the last one that was.

    A loss is unusual if it exceeds the median of the last WINDOW usual ones by SPREADS median deviations and by SHARE of that median. With
    fewer than FEW of them, by SHARE_OF_FEW of the median. A loss that stays high for NEW_LEVEL steps is usual: the data may have changed.
    """

    WINDOW, FEW, SPREADS, SHARE, SHARE_OF_FEW, NEW_LEVEL = 32, 8, 12.0, 0.1, 0.5, 100

    def __init__(self) -> None:
        self.step: int | None = None
        """The last step with a usual loss; None before the first."""
        self._losses: deque[float] = deque(maxlen=self.WINDOW)
        self._unusual_in_a_row = 0

    def take(self, step: int, loss: float) -> None:
        """Takes the finite loss of a step that was not skipped."""
        self._unusual_in_a_row = 0 if self._is_usual(loss) else self._unusual_in_a_row + 1
        if self._unusual_in_a_row == 0 or self._unusual_in_a_row >= self.NEW_LEVEL:
            if self._unusual_in_a_row:
                self._losses.clear()
                self._unusual_in_a_row = 0
            self._losses.append(loss)
            self.step = step

    def _is_usual(self, loss: float) -> bool:
        if not self._losses:
            return True
        median = statistics.median(self._losses)
        if len(self._losses) < self.FEW:
            return loss <= median + self.SHARE_OF_FEW * abs(median)
        deviation = statistics.median(abs(each - median) for each in self._losses)
        return loss <= median + max(self.SPREADS * deviation, self.SHARE * abs(median))

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "losses": list(self._losses), "unusual_in_a_row": self._unusual_in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self._unusual_in_a_row = state["step"], int(state["unusual_in_a_row"])
        self._losses = deque(state["losses"], maxlen=self.WINDOW)


class LossLevel:
    """Whether the loss has left for good: its median over WINDOW steps stands far above the lowest that this median ever was.

    Far is FAR of that, and LEAST nats at least: more than another kind of text makes of it, and less than a model that has forgotten all.
    """

    WINDOW, FAR, LEAST = 32, 0.5, 1.0

    def __init__(self) -> None:
        self._best: float | None = None
        self._losses: deque[float] = deque(maxlen=self.WINDOW)

    def take(self, loss: float) -> str | None:
        """Takes the finite loss of a step; returns why the run has diverged, or None."""
        self._losses.append(loss)
        if len(self._losses) < self.WINDOW:
            return None
        median = statistics.median(self._losses)  # not the mean, since a few spikes are no divergence
        best = self._best = median if self._best is None else min(self._best, median)
        if median - best <= max(self.FAR * abs(best), self.LEAST):
            return None
        return f"the loss of the last {self.WINDOW} steps was {median:.4g} in the middle, and {best:.4g} at best before"

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best, "losses": list(self._losses)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._best, self._losses = state["best"], deque(state["losses"], maxlen=self.WINDOW)


class NonFiniteGuard:
    """Counts skipped steps and watches the loss; a part of the TrainState, so the count survives a restart."""

    def __init__(self, max_bad_steps: int, *, scaled: bool = False) -> None:
        """`scaled`: a GradScaler finds its scale by letting gradients overflow, so a bad step shows in the loss only."""
        self._max_bad_steps, self._scaled = max_bad_steps, scaled
        self._in_a_row = self._in_all = 0
        self.num_last_skipped = 0
        """How many steps in a row were skipped up to the last one; `start_over` does not reset it."""
        self.is_lost = self.has_diverged = False
        """Whether finite updates have led the weights astray; whether `judge` has given a reason to end the run."""
        self._usual, self._level = UsualLoss(), LossLevel()

    @property
    def in_doubt(self) -> bool:
        """Whether the last step was skipped: the weights may be worthless, and must not take a good checkpoint's place."""
        return self.num_last_skipped > 0

    @property
    def first_unsure_step(self) -> int:
        """The first step whose weights may have diverged already, if the run has: no later step had a usual loss."""
        return self._usual.step or 0

    def judge(self, step: int, loss: float, grad_norm: float) -> str | None:
        """Takes a step's loss and gradient norm, equal on every rank; returns the reason to end the run, or None."""
        if math.isfinite(loss if self._scaled else grad_norm):
            self._in_a_row = self.num_last_skipped = 0
            if not math.isfinite(loss):
                return None
            self._usual.take(step, loss)
            reason = self._level.take(loss)
            self.is_lost = self.has_diverged = reason is not None
            return reason
        self.num_last_skipped += 1
        self._in_a_row += 1
        self._in_all += 1
        counts = f"{self._in_a_row} in a row, {self._in_all} in all"
        log.warning(f"step {step}: loss {loss:g}, gradient norm {grad_norm:g}: the update is skipped ({counts})")
        if self._in_a_row >= self._max_bad_steps:
            self.has_diverged = True
            return f"{self._in_a_row} steps in a row had a gradient that is not finite, the last with loss {loss:g}"
        return None

    def start_over(self) -> None:
        """Resets the count of bad steps, since their cause may be gone; whether the weights are sound is still in doubt."""
        self._in_a_row, self.has_diverged = 0, False

    def state_dict(self) -> dict[str, Any]:
        return {"in_all": self._in_all, "usual": self._usual.state_dict(), "level": self._level.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._in_a_row, self._in_all, self.num_last_skipped = 0, int(state["in_all"]), 0
        self._usual = UsualLoss()
        if "usual" in state:  # earlier versions did not keep it
            self._usual.load_state_dict(state["usual"])
        self._level = LossLevel()
        if "level" in state:
            self._level.load_state_dict(state["level"])
