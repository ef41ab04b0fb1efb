"""From a recipe's `optimizer` section to one torch optimizer with named groups, and the step that may be skipped."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer.config.optimizers import OptimizerSettings, optimizer_entry
from trainer.optim.found_inf import found_inf, found_inf_given, reads_found_inf
from trainer.optim.groups import check_groups, group_settings, named_groups
from trainer.optim.rules import followers, labels


def build_optimizer(model: nn.Module, settings: OptimizerSettings, *, fused: bool = True) -> Optimizer:
    """An optimizer over every trainable parameter, each in one named group with its own `peak_lr`.

    fused   whether a kernel that updates all parameters at once may be taken
    raises  ConfigError for an unknown name, and for a model with a parameter that would be trained by no group
    """
    entry = optimizer_entry(settings.name)
    # The first group's rate is the run's: that of what no entry is about.
    groups = [group for number in (None, *range(len(settings.groups))) for group in _groups_of(model, settings, number)]
    optimizer = entry.build(groups, fused)
    check_groups(model, optimizer)
    return optimizer


def _groups_of(model: nn.Module, settings: OptimizerSettings, number: int | None) -> Iterator[dict[str, Any]]:
    """torch's groups for what follows one entry of `optimizer.groups`, by its place; None: for what follows none."""
    entry, rules = optimizer_entry(settings.name), settings.groups
    followed = followers(model, rules)
    label = {} if number is None else {"label": labels(rules)[number]}
    for kind, named in named_groups(model).items():
        own = {name: parameter for name, parameter in named.items() if followed[name].rule == number}
        if own:
            values = group_settings(entry, settings, kind, None if number is None else rules[number])
            names = {"name": "/".join((*label.values(), kind)), "param_names": list(own), **label}
            yield {"params": list(own.values()), **names, "peak_lr": values["lr"], **values}


def step_if_finite(optimizer: Optimizer, grad_norm: Tensor) -> None:
    """Takes the optimizer's step, or leaves parameters and state bit for bit as they are when the norm is not finite.

    optimizer  a torch optimizer, or Accelerate's wrapper around one
    grad_norm  0-d, on the device, as clipping returned it

    The optimizer reads from a tensor whether it is finite, so that the host waits for nothing; only one that cannot (AdamW that is not
    fused) is waited for. Under fp16 the scaler has seen the gradients before they were clipped and judges by itself.
    """
    if getattr(optimizer, "scaler", None) is not None:
        optimizer.step()
        return
    inner = getattr(optimizer, "optimizer", optimizer)
    if reads_found_inf(inner):
        with found_inf_given(inner, found_inf(grad_norm)):
            optimizer.step()
    elif bool(torch.isfinite(grad_norm)):
        optimizer.step()
