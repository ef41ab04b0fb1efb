"""Watches a run's experts: each step's auxiliary loss, and now and then how the tokens of the whole global batch were spread over them."""

import torch
from accelerate import Accelerator

from trainer.config.length import is_due
from trainer.metrics.expert_load import load_reading
from trainer.metrics.layer_groups import layer_groups
from trainer.metrics.probes import Reading
from trainer.model.routing import load_facts


class ExpertsMonitor:
    """Every method is called on every rank; for a model whose routers have no auxiliary loss, none does anything."""

    def __init__(self, model: torch.nn.Module, accelerator: Accelerator, *, load_every_steps: int) -> None:
        """`load_every_steps` of 0: the load is not looked at."""
        self._routing, self._accelerator, self._load_every_steps = model.routing, accelerator, load_every_steps
        self._blocks = list(
            dict.fromkeys(layer_groups([name for name, _ in model.named_parameters() if ".experts." in name]))
        )

    def begin(self, step: int) -> None:
        """Before the micro-batches of a step, by its number."""
        if self._routing is not None:
            self._routing.begin(is_counting=is_due(step, self._load_every_steps))

    def aux_loss(self) -> torch.Tensor | None:
        """The mean auxiliary loss of this rank's micro-batches since `begin`, a scalar on the device; None for a model without."""
        return None if self._routing is None else self._routing.aux_loss

    def load(self, step: int) -> Reading | None:
        """How the tokens of all ranks since `begin` were spread over the experts; None where that was not counted."""
        draws = None if self._routing is None else self._routing.draws
        if draws is None:
            return None
        facts = load_facts(self._accelerator.reduce(draws, reduction="sum"), self._routing.experts_per_token)
        return load_reading(step, self._layers(len(facts)), facts)

    def _layers(self, number: int) -> list[str]:
        """Their names: the blocks with experts; where some have several routers, or none is found by its name, numbers."""
        return self._blocks if len(self._blocks) == number else [f"router_{place:02}" for place in range(number)]
