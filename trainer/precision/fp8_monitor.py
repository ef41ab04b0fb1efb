"""fp8 while a run trains: statistics, comparison with bf16, and the fallback to bf16.

Every method is called on every rank, and every rank does the same.
"""

import logging
import math
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from trainer import beats
from trainer.config.length import is_due
from trainer.journal import Journal
from trainer.precision.audit import Coverage
from trainer.precision.fp8_model import Fp8Model
from trainer.precision.record import PrecisionRecord
from trainer.precision.statistics import Statistics, relative_gap

log = logging.getLogger(__name__)

FORGETS = "a launch with a cluster file that says bf16 forgets this"

GAP_CHECKS = 3
"""This many comparisons in a row with too large a gap end fp8: one may be chance."""


class Fp8Monitor:
    """Follows the steps of a run in fp8; a part of the TrainState."""

    def __init__(
        self,
        fp8: Fp8Model,
        coverage: Coverage,
        accelerator: Accelerator,
        model: nn.Module,
        journal: Journal,
        *,
        caches_weights: bool,
    ) -> None:
        """
        model            what the comparison with bf16 calls: as prepared, without its wrapper of several processes
        caches_weights   whether fp8 copies of the weights are kept over the micro-batches of a step
        """
        self._fp8, self._switch, self._wanted = fp8, fp8.switch, fp8.wanted
        self._coverage, self._accelerator, self._model, self._journal = coverage, accelerator, model, journal
        self._caches_weights, self._is_proven = caches_weights, False
        self._statistics: Statistics | None = None
        self._last_fp8_step: int | None = None
        self._unrecorded_reason: str | None = None
        """Why this launch goes back to bf16, until its first step in bf16 begins."""
        self._gaps_in_a_row = 0

    @property
    def record(self) -> PrecisionRecord:
        """What the precision is now."""
        decision, switch = self._fp8.decision, self._switch
        return PrecisionRecord(decision, self._wanted, self._coverage, switch.made, switch.enabled, self._last_fp8_step)

    def check_warm_up(self) -> None:
        """Refuses to begin where the warm-up's passes did not go through the fp8 layers in fp8."""
        if self._switch.enabled:
            self._fp8.check_ran("the warm-up")
            self._fp8.forget_what_ran()

    # In a step

    def begin(self, step: int) -> None:
        """Before the micro-batches of a step, counted from 1."""
        if self._last_fp8_step is not None:
            self._switch.enabled = step <= self._last_fp8_step
            if not self._switch.enabled and self._unrecorded_reason is not None:
                beats.beat(phase="compiling")  # until this step's end
                self._write_event(self._unrecorded_reason)
                self._unrecorded_reason = None
        is_observed = self._accelerator.is_main_process and is_due(step, self._wanted.statistics_every_steps)
        if self._switch.enabled and is_observed:
            self._statistics = self._fp8.statistics()

    def micro_batch(self, number: int) -> None:
        """Before each micro-batch of a step, counted from 1: fp8 copies of the weights are made for the first, statistics end with it."""
        if self._caches_weights:
            self._switch.first_micro_batch = number == 1
        if number > 1 and self._statistics is not None:
            self._statistics.stop()

    def end(self, step: int, inputs: Tensor, labels: Tensor) -> dict[str, float]:
        """After the update of a step, with one of its micro-batches [B, T]; returns the step's numbers by tag."""
        numbers = {"precision/fp8_coverage": self.record.matmul_fraction}
        if not self._switch.enabled:
            return numbers
        if not self._is_proven:
            self._fp8.check_ran(f"step {step}")
            self._is_proven = True
        if self._statistics is not None:
            self._statistics.stop()
            numbers.update(self._statistics.numbers())
            self._statistics = None
        if is_due(step, self._wanted.shadow_every_steps):
            with beats.phase("compiling"):  # the first time it is computed in bf16
                numbers.update(self._compare(step, inputs, labels))
        return numbers

    def _compare(self, step: int, inputs: Tensor, labels: Tensor) -> dict[str, float]:
        """The loss of one micro-batch in fp8 and in bf16, as means over the ranks; goes back to bf16 where that is due.

        It changes nothing of the run, but that the largest values of this micro-batch are in delayed scaling's history without dropout too.
        """
        losses = [self._fp8.loss(self._model, inputs, labels, in_fp8=in_fp8) for in_fp8 in (True, False)]
        ours, reference = self._accelerator.reduce(torch.stack(losses), reduction="mean").tolist()
        gap = relative_gap(ours, reference)
        self._gaps_in_a_row = self._gaps_in_a_row + 1 if gap > self._wanted.max_loss_gap else 0
        if self._gaps_in_a_row:
            by = f", {100 * gap:+.2f}%" if math.isfinite(gap) else ""
            said = f"the loss is {ours:.4f} in fp8 and {reference:.4f} in bf16{by}: over precision.max_loss_gap"
            self._warn(f"step {step}: {said} ({self._gaps_in_a_row} in a row, {GAP_CHECKS} end fp8)")
        if self._gaps_in_a_row >= GAP_CHECKS:
            above = f"{100 * gap:.2f} % above bf16's in"
            size = above if math.isfinite(gap) else "not finite, unlike bf16's, in the last of"
            self._go_back_to_bf16(step, f"the loss in fp8 was {size} {GAP_CHECKS} comparisons up to step {step}")
        return {"precision/loss_gap": gap, "precision/shadow_loss": reference}

    def give_up_fp8(self, step: int, reason: str) -> bool:
        """Called for a step at which the run would end; returns whether it goes on in bf16 instead, since that step was in fp8.

        reason   why it would end, as a clause

        The step after it is in fp8 too: a GPU has begun it when the numbers of this one arrive, and every device does the same.
        """
        if self._last_fp8_step is None:
            self._go_back_to_bf16(step + 1, reason)
            return True
        return step <= self._last_fp8_step

    def _go_back_to_bf16(self, step: int, reason: str) -> None:
        self._last_fp8_step, self._switch.enabled, self._unrecorded_reason = step, False, reason
        self._warn(f"precision: bf16 from step {step + 1} on, because {reason}; {FORGETS}")

    def _write_event(self, reason: str, **facts: bool) -> None:
        if self._accelerator.is_main_process:
            self._journal.write("precision", step=self._last_fp8_step, mode="bf16", reason=reason, **facts)

    def _warn(self, words: str) -> None:
        """Warns once for all ranks, which know the same."""
        if self._accelerator.is_main_process:
            log.warning(words)

    # What survives a restart

    def state_dict(self) -> dict[str, Any]:
        return {"switched_at": self._last_fp8_step, "gaps_in_a_row": self._gaps_in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._last_fp8_step, self._gaps_in_a_row = state["switched_at"], int(state["gaps_in_a_row"])
        self._switch.enabled = self._last_fp8_step is None
        if self._last_fp8_step is not None:
            self._write_event("the run went back to it before", resumed=True)
            self._warn(f"precision: bf16, since the run went back to it at step {self._last_fp8_step}; {FORGETS}")
