"""How well tensors fit into fp8: the largest value, what is rounded to zero and what is cut off, gathered on some steps by hooks.

The numbers come from torch's own float8 casts with the scale that the recipe would take, so they are the same with and without a GPU.
Where the share that underflows rises over some percent, or anything overflows, the recipe or more bf16 blocks should be thought about.
"""

import math
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from trainer.precision.recipes import Recipe

_ROLES = "qkv, attention_out, mlp_up, mlp_down"
FP8_MEANINGS = {
    "precision/amax_input/ROLE": ("", f"largest absolute value that went into the fp8 layers of a role: {_ROLES}"),
    "precision/amax_weight/ROLE": ("", "largest absolute value of their weights"),
    "precision/underflow_input/ROLE": (
        "0..1",
        "share of what went in that fp8 rounds to zero; over some percent is too much",
    ),
    "precision/underflow_weight/ROLE": ("0..1", "the same of their weights"),
    "precision/overflow_input/ROLE": (
        "0..1",
        "share of what went in that is cut off at fp8's largest number; delayed scaling only",
    ),
    "precision/overflow_weight/ROLE": ("0..1", "the same of their weights"),
    "precision/loss_gap": (
        "fraction",
        "how much higher the loss is in fp8 than in bf16, on one micro-batch of each rank, without dropout",
    ),
    "precision/shadow_loss": ("nats per token", "the loss in bf16 that it was compared with"),
}
"""What each number is; ROLE stands for each of the four."""


class Statistics:
    """Watches the fp8 layers for one micro-batch."""

    def __init__(self, converted: Mapping[str, nn.Module], roles: Mapping[str, str], recipe: Recipe) -> None:
        """`roles` has what each layer does, by its name."""
        self._recipe = recipe
        self._largest: dict[str, list[Tensor]] = defaultdict(list)
        self._shares: dict[str, list[Tensor]] = defaultdict(list)
        self._hooks: list[RemovableHandle] = [
            layer.register_forward_pre_hook(self._hook(roles[name])) for name, layer in converted.items()
        ]

    def _hook(self, role: str):
        def take(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            scales = _delayed_scales(layer)
            (weight,) = layer._get_weight_tensors()
            for what, tensor, scale in (("input", arguments[0], scales[0]), ("weight", weight, scales[1])):
                largest, underflow, overflow = fit(tensor.detach(), self._recipe, scale)
                self._largest[f"precision/amax_{what}/{role}"].append(largest)
                self._shares[f"precision/underflow_{what}/{role}"].append(underflow)
                self._shares[f"precision/overflow_{what}/{role}"].append(overflow)

        return take

    def stop(self) -> None:
        """Takes the hooks away: from here on the layers cost nothing more."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def numbers(self) -> dict[str, float]:
        """By tag: the largest value over a role's layers, and the mean of the shares. Waits for the device."""
        everything = {tag: torch.stack(values).max() for tag, values in self._largest.items()}
        everything |= {tag: torch.stack(values).mean() for tag, values in self._shares.items()}
        if not everything:
            return {}
        return dict(zip(everything, torch.stack(list(everything.values())).tolist(), strict=True))


def _delayed_scales(layer: nn.Module) -> tuple[Tensor | None, Tensor | None]:
    """The scales of input and weight that delayed scaling has from the steps before; None where a recipe takes them from the tensor."""
    state = layer.fp8_meta.get("scaling_fwd")
    scale = getattr(state, "scale", None)
    return (None, None) if scale is None else (scale[0], scale[1])


def fit(tensor: Tensor, recipe: Recipe, scale: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The largest absolute value, the share that is rounded to zero though it was not zero, and the share that is cut off; 0-d each.

    tensor   [..., width], any float type
    scale    what it is multiplied by before the cast; None: the recipe's, which lets the largest value of a block just fit
    """
    values = tensor.float()
    largest = values.abs().max()
    scaled = values * (scale if scale is not None else _scale(values, largest, recipe))
    cut = scaled.abs() > recipe.cut_off
    if recipe.largest == 448.0:
        rounded = scaled.clamp(-recipe.largest, recipe.largest).to(torch.float8_e4m3fn).float()
    else:
        rounded = torch.where(scaled.abs() > recipe.smallest / 2, scaled, 0.0)  # torch has no cast to four bits
    lost = (rounded == 0.0) & (values != 0.0)
    return largest, lost.float().mean(), cut.float().mean()


def _scale(values: Tensor, largest: Tensor, recipe: Recipe) -> Tensor:
    """The scale for each block along the last dimension, or for the whole tensor."""
    if recipe.block is None:
        amax = largest
    else:
        width = recipe.block[1]
        whole = values.shape[-1] // width * width
        blocks = values[..., :whole].unflatten(-1, (-1, width)) if whole == values.shape[-1] else values.unsqueeze(-2)
        amax = blocks.abs().amax(-1, keepdim=True).expand(blocks.shape).reshape(values.shape)
    scale = recipe.largest / amax
    if recipe.block is not None:  # block scales are powers of two, rounded so that nothing is cut off
        scale = torch.exp2(torch.floor(torch.log2(scale)))
    return torch.where(torch.isfinite(scale), scale, torch.ones((), device=values.device))


def relative_gap(ours: float, reference: float) -> float:
    """How much larger a loss is than the reference, as a fraction of that; infinite where ours is no number and the reference is."""
    if not math.isfinite(reference) or reference == 0.0:
        return 0.0
    return (ours - reference) / abs(reference) if math.isfinite(ours) else math.inf
