"""Muon for the hidden matrices, AdamW for everything else: settings and groups; the algorithm is in muon_with_adamw.py."""

from typing import TYPE_CHECKING, Any

from trainer.config.optimizers import OptimizerEntry
from trainer.config.section import Beta, Decay, Rate
from trainer.optim import adamw

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer


class MuonSettings(adamw.AdamWSettings):
    """What Muon reads, and the AdamW beside it."""

    muon_lr: Rate = 0.02
    """Peak learning rate of Muon."""
    muon_momentum: Beta = 0.95
    """Muon's momentum."""
    muon_weight_decay: Decay = 0.0
    """Decoupled weight decay of Muon's matrices."""


def _hyperparameters(settings: MuonSettings, group: str) -> dict[str, Any]:
    if group != "hidden":
        return adamw.hyperparameters(settings, group)
    own = {"momentum": settings.muon_momentum, "weight_decay": settings.muon_weight_decay}
    return {"algorithm": "muon", "lr": settings.muon_lr, **own}


def _build(groups: list[dict[str, Any]], fused: bool) -> "Optimizer":
    from trainer.optim.muon_with_adamw import MuonWithAdamW

    return MuonWithAdamW(groups, fused=fused)


def _state_bytes(parameter: "Tensor") -> int:
    return parameter.numel() * parameter.element_size()  # the momentum


def _conditions(device_type: str) -> dict[str, Any]:
    from trainer.optim.muon_with_adamw import iteration_dtype

    return {"muon_iteration": str(iteration_dtype(device_type)).removeprefix("torch.")}


_HELP = "Muon for the hidden matrices and AdamW for everything else"
ENTRY = OptimizerEntry(_HELP, MuonSettings, _hyperparameters, _build, _state_bytes, _conditions)
