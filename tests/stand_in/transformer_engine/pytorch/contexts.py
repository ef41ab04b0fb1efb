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
        self.delayed: dict[bool, list[Scales]] = {True: [], False: []}
        """All layers' scales that ever ran with delayed scaling, of the forward passes and of the backward passes."""
        self.num_reductions = 0
        """How often the amax of delayed scaling was reduced after a forward pass."""

    def take_first(self) -> bool:
        """Whether this is the first layer within the outermost context: its backward pass updates the scales of all gradients."""
        was_first, self.is_first = self.is_first, False
        return was_first


STATE = State()


class Scales:
    """Delayed scaling of the tensors of one layer: forward of input and weight, backward of the output's gradient."""

    def __init__(self, recipe: DelayedScaling, forward: bool) -> None:
        self.recipe = recipe
        self.largest = float(recipe.fp8_format.value.max_fwd if forward else recipe.fp8_format.value.max_bwd)
        num_tensors = 3 if forward else 2
        self.scale = torch.ones(num_tensors)
        self.amax_history = torch.zeros(recipe.amax_history_len, num_tensors)
        STATE.delayed[forward].append(self)

    def update(self) -> None:
        amax = self.amax_history.amax(0)
        self.scale = torch.where(amax > 0, self.largest / amax, self.scale)
        self.amax_history = self.amax_history.roll(-1, 0)
        self.amax_history[0] = 0.0


def reduce_and_update(forward: bool) -> None:
    """Takes the largest values over all ranks, which all have to come here, and makes scales of them."""
    for scales in STATE.delayed[forward]:
        if scales.recipe.reduce_amax and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            torch.distributed.all_reduce(scales.amax_history[0], op=torch.distributed.ReduceOp.MAX)
        scales.update()
    if STATE.delayed[forward] and forward:
        STATE.num_reductions += 1


class autocast:
    def __init__(
        self,
        enabled: bool = True,
        calibrating: bool = False,
        recipe: Recipe | None = None,
        amax_reduction_group: object = None,
    ) -> None:
        self._wanted = (enabled, recipe or DelayedScaling())
        self._before = None

    def __enter__(self) -> "autocast":
        if self._before is not None:
            raise RuntimeError("autocast context manager cannot be entered more than once concurrently")
        self._before = (STATE.enabled, STATE.recipe, STATE.is_first)
        STATE.enabled, STATE.recipe = self._wanted
        if STATE.depth == 0:
            STATE.is_first = True
        STATE.depth += 1
        return self

    def __exit__(self, *_: object) -> None:
        STATE.enabled, STATE.recipe, STATE.is_first = self._before
        STATE.depth -= 1
        self._before = None
        if self._wanted[0] and STATE.depth == 0 and torch.is_grad_enabled():
            reduce_and_update(forward=True)


def fp8_autocast(
    enabled: bool = True, calibrating: bool = False, fp8_recipe: Recipe | None = None, fp8_group: object = None
) -> autocast:
    return autocast(enabled, calibrating, fp8_recipe)
