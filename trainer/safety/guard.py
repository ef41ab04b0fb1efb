"""Steps whose gradient is not finite are skipped on the device; too many in a row end the run."""

import logging
import math
from typing import Any

log = logging.getLogger(__name__)


class LossGuard:
    """Counts skipped steps; a part of the TrainState, so the count survives a restart."""

    def __init__(self, max_bad_steps: int, *, scaled: bool = False) -> None:
        """`scaled`: a GradScaler looks for its scale by letting gradients overflow, so only the loss tells a bad step."""
        self._max_bad_steps, self._scaled = max_bad_steps, scaled
        self._in_a_row = 0
        self._in_all = 0
        self.in_doubt = False
        """Whether the last step was skipped: the weights may be beyond saving, and should not take a good checkpoint's place."""

    def judge(self, step: int, loss: float, grad_norm: float) -> str | None:
        """Takes a step's numbers, equal on every rank; returns the reason to give up, or None to go on."""
        if math.isfinite(loss if self._scaled else grad_norm):
            self._in_a_row, self.in_doubt = 0, False
            return None
        self.in_doubt = True
        self._in_a_row += 1
        self._in_all += 1
        log.warning(
            "step %d: loss %g, gradient norm %g: the update is skipped (%d in a row, %d in all)",
            step, loss, grad_norm, self._in_a_row, self._in_all,
        )  # fmt: skip
        if self._in_a_row >= self._max_bad_steps:
            return f"{self._in_a_row} steps in a row had a gradient that is not finite, the last with loss {loss:g}"
        return None

    def start_over(self) -> None:
        """Counts anew from here: what made the steps bad may be gone. Whether the weights are sound is still in doubt."""
        self._in_a_row = 0

    def state_dict(self) -> dict[str, Any]:
        return {"in_all": self._in_all}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._in_a_row, self._in_all, self.in_doubt = 0, int(state["in_all"]), False
