"""A run's precision while it runs: conversion, audit, statistics, comparison with bf16, and the way back to bf16.

Built before the optimizer, on every run: without fp8 each method does nothing, and the part of the state is there all the same, so that a
run may go from fp8 to bf16 and back over restarts.
"""

import logging
import math
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from trainer.config.length import is_due
from trainer.config.schema import PrecisionConfig
from trainer.journal import Journal
from trainer.precision import audit, backend
from trainer.precision.convert import Layer, convert, survey
from trainer.precision.decide import Decision
from trainer.precision.layers import Switch
from trainer.precision.recipes import RECIPES, Recipe
from trainer.precision.statistics import Statistics, relative_gap

log = logging.getLogger(__name__)

GAP_CHECKS = 3
"""So many comparisons in a row with too large a gap end fp8: one may be chance."""


class PrecisionWatch:
    """Every method is called on every rank, and every rank does the same; a part of the TrainState."""

    def __init__(self, decision: Decision, wanted: PrecisionConfig, model: nn.Module) -> None:
        """Converts the model where fp8 was decided.

        model    the transformers model, before the optimizer is built on it
        raises   PrecisionError where the model cannot be converted, or an option is refused
        """
        self.decision, self._wanted, self._bare = decision, wanted, model
        self._converted: dict[str, nn.Module] = {}
        self._layers: list[Layer] = []
        self._switch: Switch | None = None
        self._coverage: audit.Coverage | None = None
        self._statistics: Statistics | None = None
        self._caches = self._proven = False
        self._switched_at: int | None = None
        self._untold_reason: str | None = None
        """Why this launch goes back to bf16, until its first step in bf16 begins."""
        self._gaps_in_a_row = 0
        if decision.mode == "fp8":
            self._convert(RECIPES[decision.recipe])

    def _convert(self, recipe: Recipe) -> None:
        wanted = self._wanted
        self._census = audit.census(self._bare)
        self._layers = survey(self._bare, recipe, first=wanted.bf16_first_blocks, last=wanted.bf16_last_blocks)
        made = backend.make_recipe(recipe, self.decision.format, wanted.options)
        self._switch = Switch(backend.load().pytorch.autocast, made, around_model=not recipe.stateless)
        self._converted = convert(self._bare, self._layers, self._switch)
        self._recipe = recipe

    # Before the first step

    def attach(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        flops_per_token: float,
        journal: Journal,
        accumulation: int,
        compiled: bool,
        deterministic: bool,
    ) -> None:
        """Checks what `prepare` made of the model, and tells what computes in fp8; PrecisionError where it is not what was built.

        model, optimizer   what `prepare` gave back
        flops_per_token    of the model, forward and backward (model/flops.py)
        accumulation       micro-batches of a step
        compiled           whether the blocks are compiled: kept fp8 copies of weights would break their graphs
        """
        self._accelerator, self._journal = accelerator, journal
        self._inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        if self._switch is None:
            return
        audit.check_prepared(
            self._census, self._bare, self._converted, mixed_precision=accelerator.mixed_precision, optimizer=optimizer
        )
        self._caches = self._wanted.cache_weights and self._recipe.stateless and accumulation > 1 and not compiled
        self._coverage = audit.coverage(
            self._bare, self._layers, flops_per_token, forward_only=self._switch.forward_only
        )
        log.info("%s: %s", self.decision.label, self._coverage.words)
        if self._switch.forward_only:
            log.info(
                "in bf16: the backward pass of all layers, by backward_override=%s", self._switch.made.backward_override
            )
        for why, names in _kept(self._layers).items():
            log.info(
                "in bf16: %d layers, %s (%s)",
                len(names),
                why,
                ", ".join(names[:3]) + (" ..." if len(names) > 3 else ""),
            )
        if not self._recipe.stateless:
            self._warn(
                "delayed scaling has a state that no checkpoint holds: its scales begin anew at each start%s, and each micro-batch waits for "
                "all ranks",
                ", so a resume is not exact to the last bit in spite of deterministic: true" if deterministic else "",
            )

    def check_warm_up(self) -> None:
        """Refuses to begin where the warm-up's passes did not go through the fp8 layers in fp8."""
        if self._switch is not None and self._switch.enabled:
            audit.check_ran(self._converted, "the warm-up")
            audit.forget_what_ran(self._converted)

    # In a step

    def begin(self, step: int) -> None:
        """Before the micro-batches of a step, counted from 1."""
        if self._switch is not None and self._switched_at is not None:
            self._switch.enabled = step <= self._switched_at
            if not self._switch.enabled and self._untold_reason is not None:
                self._write_down(self._untold_reason)
                self._untold_reason = None
        if (
            self._computes_in_fp8
            and self._accelerator.is_main_process
            and is_due(step, self._wanted.statistics_every_steps)
        ):
            roles = {layer.name: layer.role for layer in self._layers}
            self._statistics = Statistics(self._converted, roles, self._recipe)

    def micro_batch(self, number: int) -> None:
        """Before each micro-batch of a step, counted from 1: fp8 copies of the weights are made for the first, statistics end with it."""
        if self._switch is None:
            return
        if self._caches:
            self._switch.first_micro_batch = number == 1
        if number > 1 and self._statistics is not None:
            self._statistics.stop()

    def end(self, step: int, inputs: Tensor, labels: Tensor) -> dict[str, float]:
        """After the update of a step, with one of its micro-batches [B, T]; returns the step's numbers by tag."""
        if self.decision.asked != "fp8":
            return {}
        numbers = {"precision/fp8_coverage": self.matmul_fraction}
        if self._computes_in_fp8:
            if not self._proven:
                audit.check_ran(self._converted, f"step {step}")
                self._proven = True
            if self._statistics is not None:
                self._statistics.stop()
                numbers.update(self._statistics.numbers())
                self._statistics = None
            if is_due(step, self._wanted.shadow_every_steps):
                numbers.update(self._compare(step, inputs, labels))
        return numbers

    def _compare(self, step: int, inputs: Tensor, labels: Tensor) -> dict[str, float]:
        """The loss of one micro-batch in fp8 and in bf16, both without dropout, as means over the ranks; goes back to bf16 where that is due.

        It changes nothing of the run, but that the largest values of this micro-batch are in delayed scaling's history without dropout too.
        """
        losses = torch.stack([self._loss(inputs, labels, in_fp8) for in_fp8 in (True, False)])
        losses = self._accelerator.reduce(losses, reduction="mean")
        ours, reference = losses.tolist()
        gap = relative_gap(ours, reference)
        self._gaps_in_a_row = self._gaps_in_a_row + 1 if gap > self._wanted.max_loss_gap else 0
        if self._gaps_in_a_row:
            by = f", {100 * gap:+.2f}%" if math.isfinite(gap) else ""
            self._warn(
                "step %d: the loss is %.4f in fp8 and %.4f in bf16%s: over precision.max_loss_gap (%d in a row, %d end fp8)",
                step,
                ours,
                reference,
                by,
                self._gaps_in_a_row,
                GAP_CHECKS,
            )
        if self._gaps_in_a_row >= GAP_CHECKS:
            how = (
                f"{100 * gap:.2f} % above bf16's in"
                if math.isfinite(gap)
                else "no number, and bf16's was, in the last of"
            )
            self._go_back_to_bf16(step, f"the loss in fp8 was {how} {GAP_CHECKS} comparisons up to step {step}")
        return {"precision/loss_gap": gap, "precision/shadow_loss": reference}

    @torch.no_grad()
    def _loss(self, inputs: Tensor, labels: Tensor, in_fp8: bool) -> Tensor:
        # Without gradients delayed scaling makes no new scales, but its history of largest values takes these in: a scale may become smaller.
        switch, was_training, was_first = self._switch, self._bare.training, self._switch.first_micro_batch
        self._bare.eval()
        switch.in_evaluation, switch.first_micro_batch = in_fp8, None
        try:
            return self._inner(inputs, labels=labels).float()
        finally:
            switch.in_evaluation, switch.first_micro_batch = False, was_first
            self._bare.train(was_training)

    def give_up_fp8(self, step: int, reason: str) -> bool:
        """Takes a step that a run would end at; returns whether it goes on in bf16 instead, which it does where that step was in fp8.

        reason   why it would end, a clause

        The step after it is in fp8 too: a GPU has begun it when the numbers of this one arrive, and every device does the same.
        """
        if self._switch is None or (self._switched_at is not None and step > self._switched_at):
            return False
        if self._switched_at is None:
            self._go_back_to_bf16(step + 1, reason)
        return True

    def _go_back_to_bf16(self, step: int, reason: str) -> None:
        self._switched_at, self._switch.enabled, self._untold_reason = step, False, reason
        self._warn(
            "precision: bf16 from step %d on, because %s; a cluster file that says bf16, for one launch, forgets this",
            step + 1,
            reason,
        )

    def _write_down(self, reason: str, **facts: bool) -> None:
        if self._accelerator.is_main_process:
            self._journal.write("precision", step=self._switched_at, mode="bf16", reason=reason, **facts)

    def _warn(self, words: str, *values: Any) -> None:
        """Warns once for all ranks, which know the same."""
        if self._accelerator.is_main_process:
            log.warning(words, *values)

    @property
    def _computes_in_fp8(self) -> bool:
        return self._switch is not None and self._switch.enabled

    @property
    def matmul_fraction(self) -> float:
        """The share of all matrix products' arithmetic that is in real fp8 now."""
        counts = self._computes_in_fp8 and self._coverage is not None and not self.decision.emulated
        return self._coverage.matmul_fraction if counts else 0.0

    @property
    def _went_back(self) -> bool:
        return self._switch is not None and not self._switch.enabled

    @property
    def mode(self) -> str:
        """What the run computes in now: one of MODES."""
        return "bf16" if self._went_back else self.decision.mode

    @property
    def label(self) -> str:
        """What a record calls the precision of the run now."""
        return self.mode if self._went_back else self.decision.label

    @property
    def sentence(self) -> str:
        """What the run computes in now and why, in one line."""
        if not self._went_back:
            return self.decision.sentence
        return f"precision: bf16 instead of fp8 ({self.decision.title}), because the run went back to it at step {self._switched_at}; nothing runs in fp8"

    @property
    def settings(self) -> dict[str, Any]:
        """What shapes result and speed: the precision, and of fp8 the settings it was made of, with the recipe that `auto` became."""
        if self.decision.mode != "fp8":
            return {"precision": self.label}
        wanted = self._wanted
        return {
            "precision": self.label,
            "precision.recipe": self.decision.recipe,
            "precision.format": self.decision.format,
            "precision.bf16_first_blocks": wanted.bf16_first_blocks,
            "precision.bf16_last_blocks": wanted.bf16_last_blocks,
            **{f"precision.options.{name}": value for name, value in wanted.options.items()},
        }

    @property
    def words(self) -> str:
        """The decision and what is in fp8, for people."""
        return f"{self.sentence}\n\n{self._coverage.words}" if self._coverage and not self._went_back else self.sentence

    def facts(self) -> dict[str, Any]:
        """What a manifest states of the precision now, as plain values; `arguments` is the recipe in TransformerEngine's words."""
        now = {"mode": self.mode, "label": self.label, "sentence": self.sentence, "bf16_since_step": self._switched_at}
        if not self._computes_in_fp8:
            return {**self.decision.as_json(), **now}
        numbers = {} if self._coverage is None else vars(self._coverage)
        return {**self.decision.as_json(), **now, "arguments": str(self._switch.made), **numbers}

    def start_facts(self) -> dict[str, Any]:
        """What the journal states of a launch's precision; what was asked for and why it is not that, where it is not."""
        decision = self.decision
        fallback = {} if decision.mode == decision.asked else {"instead_of": decision.asked, "because": decision.reason}
        return {"precision": decision.label, **fallback}

    # What survives a restart

    def state_dict(self) -> dict[str, Any]:
        return {"switched_at": self._switched_at, "gaps_in_a_row": self._gaps_in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.decision.asked != "fp8":
            return  # the way back to bf16 is forgotten: whoever asks for fp8 again means it
        self._switched_at, self._gaps_in_a_row = state["switched_at"], int(state["gaps_in_a_row"])
        if self._switch is None:
            return  # a launch that could not have fp8 changes nothing about it
        self._switch.enabled = self._switched_at is None
        if self._switched_at is not None:
            self._write_down("the run went back to it before", resumed=True)
            self._warn(
                "precision: bf16, since the run went back to it at step %d; a launch with a cluster file that says bf16 forgets this",
                self._switched_at,
            )


def _kept(layers: list[Layer]) -> dict[str, list[str]]:
    """Names of the layers that stay in bf16, by the reason."""
    kept: dict[str, list[str]] = {}
    for layer in layers:
        if layer.kept:
            kept.setdefault(layer.kept, []).append(layer.name)
    return kept
