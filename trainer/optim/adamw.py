"""AdamW of torch, fused: every parameter decays but vectors.

source  Loshchilov & Hutter 2019
"""

from typing import TYPE_CHECKING, Any

from trainer.config.optimizers import OptimizerEntry, OptimizerSettings
from trainer.config.section import Beta, Rate

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer


class AdamWSettings(OptimizerSettings):
    """What AdamW reads."""

    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """AdamW's decay of the first and second moment."""
    eps: Rate = 1e-8
    """AdamW's epsilon."""


def hyperparameters(settings: AdamWSettings, group: str) -> dict[str, Any]:
    """Of a named group, as torch's AdamW takes them."""
    decay = 0.0 if group == "vectors" else settings.weight_decay
    own = {"betas": tuple(settings.betas), "eps": settings.eps}
    return {"algorithm": "adamw", "lr": settings.lr, **own, "weight_decay": decay}


def _build(groups: list[dict[str, Any]], fused: bool) -> "Optimizer":
    from torch.optim import AdamW

    return AdamW(groups, fused=fused)


def _state_bytes(parameter: "Tensor") -> int:
    return 2 * parameter.numel() * parameter.element_size()  # two moments


ENTRY = OptimizerEntry("for every parameter", AdamWSettings, hyperparameters, _build, _state_bytes)
