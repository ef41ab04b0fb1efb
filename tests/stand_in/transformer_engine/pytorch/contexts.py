"""The nesting of contexts, and delayed scaling's history, as quantization.py of TransformerEngine 2.20 has them."""

import torch
from transformer_engine.common.recipe import DelayedScaling, Recipe


class State:
    """What TransformerEngine keeps for the whole process."""

    def __init__(self) -> None:
        self.enabled = False
        self.recipe: Recipe | None = None
        self.is_first = False
        self.depth = 0
        self.delayed: list["Scales"] = []
        self.num_reductions = 0
        """How often the amax of delayed scaling was reduced after a forward pass."""


STATE = State()


class Scales:
    """Delayed scaling of the tensors of one layer: input, weight, gradient."""

    def __init__(self, recipe: DelayedScaling) -> None:
        self.recipe = recipe
        self.scale = torch.ones(3)
        self.amax_history = torch.zeros(recipe.amax_history_len, 3)
        STATE.delayed.append(self)

    def update(self) -> None:
        amax = self.amax_history.amax(0)
        largest = torch.tensor([448.0, 448.0, self.recipe.fp8_format.value.max_bwd])
        self.scale = torch.where(amax > 0, largest / amax, self.scale)
        self.amax_history = self.amax_history.roll(-1, 0)
        self.amax_history[0] = 0.0


def reduce_and_update() -> None:
    for scales in STATE.delayed:
        if scales.recipe.reduce_amax and torch.distributed.is_initialized():
            torch.distributed.all_reduce(scales.amax_history[0], op=torch.distributed.ReduceOp.MAX)
        scales.update()
    if STATE.delayed:
        STATE.num_reductions += 1


class autocast:
    def __init__(self, enabled: bool = True, calibrating: bool = False, recipe: Recipe | None = None, **_: object) -> None:
        self._wanted = (enabled, recipe or DelayedScaling())

    def __enter__(self) -> "autocast":
        self._before = (STATE.enabled, STATE.recipe, STATE.is_first)
        STATE.enabled, STATE.recipe = self._wanted
        if STATE.depth == 0:
            STATE.is_first = True
        STATE.depth += 1
        return self

    def __exit__(self, *_: object) -> None:
        STATE.enabled, STATE.recipe, STATE.is_first = self._before
        STATE.depth -= 1
        if self._wanted[0] and STATE.depth == 0 and torch.is_grad_enabled():
            reduce_and_update()


def fp8_autocast(enabled: bool = True, calibrating: bool = False, fp8_recipe: Recipe | None = None, fp8_group: object = None) -> autocast:
    return autocast(enabled, calibrating, fp8_recipe)
