"""Spikes: a step whose loss or gradient norm stands far above those of the steps before it is skipped, by a verdict that the device gives.

The measure is robust: the distance from the median of the last accepted steps, in units of their median absolute deviation, so that neither
a spike nor a wild beginning moves it. After too many spikes in a row the new level is what is usual from there on: data change too.
"""

import logging
import math
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.config.unattended import SpikeConfig
from trainer.step_result import StepResult, Verdict

log = logging.getLogger(__name__)

LEAST_SPREAD = 0.01
"""Of the median: numbers that hardly move, as those of a converged run, would make a spike of everything."""


@dataclass(frozen=True)
class Judged:
    """What the device makes of a step, the same on every rank: 0-d tensors on it."""

    score: Tensor
    """The higher one of loss and gradient norm; 0 before there is a history."""
    verdict: Tensor
    """A `Verdict`, as a number."""
    norm: Tensor
    """The gradient norm, and infinity where the update is to be skipped: what `step_if_finite` reads."""


class SpikeGuard:
    """Judges each step on the device; knows on the host what the device knows, from the results that arrive there, for the saved state."""

    def __init__(self, settings: SpikeConfig, device: torch.device, *, can_skip: bool = True) -> None:
        """`can_skip` is False under fp16, whose scaler decides alone whether a step is taken: spikes are only reported then."""
        self._settings, self._device = settings, device
        self.skips = settings.skip and can_skip
        """Whether the update of a spike is skipped; otherwise it is only told."""
        self.in_all = 0
        self._accepted: deque[tuple[float, float]] = deque(maxlen=settings.window)
        self._in_a_row = 0
        self._history, self._taken, self._row = self._on_device()

    def judge(self, loss: Tensor, grad_norm: Tensor) -> Judged:
        """Judges a step before its update by its loss, the mean over all ranks, and its gradient norm, both 0-d; nothing is waited for."""
        settings = self._settings
        numbers = torch.stack([loss.detach().float(), grad_norm.detach().float()])
        known = self._taken.clamp(max=settings.window)
        is_finite = torch.isfinite(numbers).all()
        scores = robust_scores(self._history, known, numbers)
        score = torch.where(is_finite & (known >= settings.min_history), scores.max(), 0.0)
        is_far = score > settings.score
        in_a_row = torch.where(is_far, self._row + 1, torch.where(is_finite, 0, self._row))
        is_level = in_a_row > settings.max_in_a_row
        is_spike = is_far & ~is_level
        taken = torch.where(is_level, 0, self._taken)
        place = (taken % settings.window).reshape(1)
        is_taken = is_finite & ~is_spike
        value = torch.where(is_taken, numbers, self._history.index_select(1, place).squeeze(1))
        self._history.index_copy_(1, place, value.unsqueeze(1))
        self._taken, self._row = taken + is_taken, torch.where(is_level, 0, in_a_row)
        verdict = torch.where(is_level, int(Verdict.NEW_LEVEL), torch.where(is_spike, int(Verdict.SPIKE), 0))
        verdict = torch.where(is_finite, verdict, int(Verdict.NOT_FINITE))
        skipped = torch.where(is_spike, math.inf, grad_norm) if self.skips else grad_norm
        return Judged(score, verdict, skipped)

    def is_skipped(self, result: StepResult) -> bool:
        """Whether a step was skipped as a spike."""
        return self.skips and result.verdict == Verdict.SPIKE

    def is_told(self, result: StepResult) -> bool:
        """Whether a step that was taken in by now is told of: each that is skipped; of others the first, the second, the fourth and so on."""
        return result.verdict == Verdict.SPIKE and (self.skips or self.in_all.bit_count() == 1)

    def take(self, result: StepResult) -> None:
        """Takes the result of a step, in order, once it has reached the host."""
        if result.verdict == Verdict.NOT_FINITE:
            return
        if result.verdict == Verdict.SPIKE:
            self._in_a_row += 1
            self.in_all += 1
            if self.is_told(result):
                self._tell(result)
            return
        if result.verdict == Verdict.NEW_LEVEL:
            self._accepted.clear()
            log.warning(
                f"step {result.step}: loss {result.loss:g}, gradient norm {result.grad_norm:g}: so were the {self._in_a_row} steps before it, so this "
                "is what is usual from here on"
            )
        self._in_a_row = 0
        self._accepted.append((result.loss, result.grad_norm))

    def _tell(self, result: StepResult) -> None:
        done = "the update is skipped" if self.skips else "the update is taken, since safety.spike.skip is off"
        log.warning(
            f"step {result.step}: loss {result.loss:g}, gradient norm {result.grad_norm:g}: a spike, {result.score:.1f} times the usual spread above "
            f"the usual: {done} ({self._in_a_row} in a row, {self.in_all} in all)"
        )

    def _on_device(self) -> tuple[Tensor, Tensor, Tensor]:
        """What the host knows, for the device: accepted pairs [2, window], how many were taken, and how many spikes were in a row."""
        history = torch.zeros(2, self._settings.window)
        if self._accepted:
            history[:, : len(self._accepted)] = torch.tensor([*zip(*self._accepted, strict=True)])
        device = self._device
        return (
            history.to(device),
            torch.tensor(len(self._accepted), device=device),
            torch.tensor(self._in_a_row, device=device),
        )

    def state_dict(self) -> dict[str, Any]:
        return {"accepted": [[*pair] for pair in self._accepted], "in_a_row": self._in_a_row, "in_all": self.in_all}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._accepted.clear()
        self._accepted.extend((loss, norm) for loss, norm in state["accepted"])
        self._in_a_row, self.in_all = int(state["in_a_row"]), int(state["in_all"])
        self._history, self._taken, self._row = self._on_device()


def robust_scores(history: Tensor, known: Tensor, numbers: Tensor) -> Tensor:
    """How far each number stands above the median of its history, in median absolute deviations: [n].

    history  [n, window], of which the first `known` (0-d) count
    numbers  [n]
    """
    beyond = torch.arange(history.shape[1], device=history.device) >= known
    middle = ((known - 1).clamp(min=0) // 2).reshape(1)

    def median(values: Tensor) -> Tensor:
        """The lower one, [n]: by place, since the host does not know how many count."""
        return values.masked_fill(beyond, math.inf).sort(dim=1).values.index_select(1, middle).squeeze(1)

    medians = median(history)
    spread = median((history - medians.unsqueeze(1)).abs())
    least = (LEAST_SPREAD * medians.abs()).clamp(min=torch.finfo(torch.float32).tiny)
    return (numbers - medians) / torch.maximum(spread, least)
