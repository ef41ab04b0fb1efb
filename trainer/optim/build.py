"""From a recipe's `optimizer` section to one torch optimizer with named groups, and the step that may be refused."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from trainer.errors import ConfigError
from trainer.optim.groups import check_groups, named_groups
from trainer.optim.muon import MuonWithAdamW
from trainer.optim.verdict import refusing, takes_a_verdict, verdict
from trainer.text import did_you_mean


def build_optimizer(
    model: nn.Module,
    *,
    name: Literal["adamw", "muon"],
    lr: float,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.1,
    muon_lr: float = 0.02,
    muon_momentum: float = 0.95,
    muon_weight_decay: float = 0.0,
    fused: bool = True,
) -> Optimizer:
    """An optimizer over every trainable parameter, each in one named group with its own `peak_lr`.

    lr, betas, eps, weight_decay  AdamW's; vectors do not decay
    muon_*                        of the hidden matrices when `name` is `muon`
    raises                        ConfigError for an unknown name
    """
    if name not in ("adamw", "muon"):
        raise ConfigError(f"optimizer.name {name!r} is not an optimizer; {did_you_mean(name, ('adamw', 'muon'))}")
    groups: list[dict[str, Any]] = []
    for group_name, parameters in named_groups(model).items():
        if name == "muon" and group_name == "hidden":
            settings = {
                "algorithm": "muon",
                "lr": muon_lr,
                "momentum": muon_momentum,
                "weight_decay": muon_weight_decay,
            }
        else:
            decay = 0.0 if group_name == "vectors" else weight_decay
            settings = {"algorithm": "adamw", "lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": decay}
        groups.append({"params": parameters, "name": group_name, "peak_lr": settings["lr"], **settings})
    optimizer: Optimizer = AdamW(groups, fused=fused) if name == "adamw" else MuonWithAdamW(groups, fused=fused)
    check_groups(model, optimizer)
    return optimizer


def step_if_finite(optimizer: Optimizer, grad_norm: Tensor) -> None:
    """Takes the optimizer's step, or leaves parameters and state bit for bit as they are when the norm is not finite.

    optimizer  a torch optimizer, or Accelerate's wrapper around one
    grad_norm  0-d, on the device, as clipping returned it

    The optimizer gets the verdict as a tensor, so that the host waits for nothing; only one that cannot read it (AdamW that is not
    fused) is waited for. Under fp16 the scaler has seen the gradients before they were clipped and judges by itself.
    """
    if getattr(optimizer, "scaler", None) is not None:
        optimizer.step()
        return
    inner = getattr(optimizer, "optimizer", optimizer)
    if hasattr(grad_norm, "full_tensor"):
        grad_norm = grad_norm.full_tensor()
    if takes_a_verdict(inner):
        with verdict(inner, refusing(grad_norm)):
            optimizer.step()
    elif bool(torch.isfinite(grad_norm)):
        optimizer.step()
