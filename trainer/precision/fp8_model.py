"""A model whose layers were converted to fp8, and the audit of what became of them."""

import logging

import torch
from torch import Tensor, nn

from trainer.config.schema import PrecisionConfig
from trainer.precision import audit, backend
from trainer.precision.convert import convert, stacked_parameters, survey
from trainer.precision.decide import Decision
from trainer.precision.layers import Switch
from trainer.precision.statistics import Statistics

log = logging.getLogger(__name__)


class Fp8Model:
    """Owns the fp8 layers of a model and the switch that they share."""

    def __init__(self, decision: Decision, wanted: PrecisionConfig, model: nn.Module) -> None:
        """Converts the model, where fp8 was decided.

        model    the transformers model, before the optimizer is built on it
        raises   PrecisionError where the model cannot be converted, or an option is refused
        """
        assert decision.format is not None, "a decision for fp8 names it"
        self.decision, self.wanted = decision, wanted
        self.recipe, self._model = decision.fp8_recipe, model
        self._census = audit.census(model)
        self._layers = survey(model, self.recipe, first=wanted.bf16_first_blocks, last=wanted.bf16_last_blocks)
        made = backend.make_recipe(self.recipe, decision.format, wanted.options)
        self.switch = Switch(backend.load().pytorch.autocast, made, around_model=not self.recipe.stateless)
        self._converted = convert(model, self._layers, self.switch)

    def check_prepared(self, mixed_precision: str, optimizer: torch.optim.Optimizer) -> None:
        """Refuses, with PrecisionError, what `prepare` made of model and optimizer where that is not what was built."""
        audit.check_prepared(self._census, self._model, self._converted, mixed_precision, optimizer)

    def coverage(self, flops_per_token: float) -> audit.Coverage:
        """How much of the arithmetic is in fp8; see audit.coverage."""
        return audit.coverage(self._model, self._layers, flops_per_token, forward_only=self.switch.forward_only)

    def log_coverage(self, coverage: audit.Coverage) -> None:
        """Logs how much is in fp8, and what stays in bf16 for which reason."""
        log.info("%s: %s", self.decision.label, coverage.words)
        if self.switch.forward_only:
            override = self.switch.made.backward_override
            log.info("in bf16: the backward pass of all layers, by backward_override=%s", override)
        kept: dict[str, list[str]] = {}
        for layer in self._layers:
            if layer.kept:
                kept.setdefault(layer.kept, []).append(layer.name)
        for why, names in kept.items():
            log.info("in bf16: %d layers, %s (%s)", len(names), why, audit.some(names))
        if stacked := stacked_parameters(self._model):
            log.info("in bf16: %d parameters that are no linear layers (%s)", len(stacked), audit.some(stacked))

    def check_ran(self, when: str) -> None:
        """Refuses, with PrecisionError, a run whose layers have not computed in fp8 since `forget_what_ran`."""
        audit.check_ran(self._converted, when)

    def forget_what_ran(self) -> None:
        """Begins to watch anew which layers compute in fp8."""
        audit.forget_what_ran(self._converted)

    def statistics(self) -> Statistics:
        """Begins to watch how well tensors fit into fp8."""
        return Statistics(self._converted, {layer.name: layer.role for layer in self._layers}, self.recipe)

    @torch.no_grad()
    def loss(self, model: nn.Module, inputs: Tensor, labels: Tensor, *, in_fp8: bool) -> Tensor:
        """The loss of one micro-batch [B, T] without dropout, 0-d fp32, in fp8 or in bf16.

        model  what is called: the model as prepared, without its wrapper of several processes

        Without gradients delayed scaling makes no new scales, but its history of largest values takes these in: a scale may become smaller.
        """
        switch, was_training, was_first = self.switch, self._model.training, self.switch.first_micro_batch
        self._model.eval()
        switch.in_evaluation, switch.first_micro_batch = in_fp8, None
        try:
            return model(inputs, labels=labels).float()
        finally:
            switch.in_evaluation, switch.first_micro_batch = False, was_first
            self._model.train(was_training)
