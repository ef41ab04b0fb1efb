"""The tensors of a checkpoint by names that a person knows, and which of those in memory now is not finite."""

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from trainer.tensor_parts import own


def moment_owners(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[int, str]:
    """The parameter whose moments stand under each number of the optimizer's state dict, by that number."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = zip(optimizer.param_groups, optimizer.state_dict()["param_groups"], strict=True)
    return {
        number: names.get(id(parameter), f"parameter {number}")
        for group, stored in groups
        for parameter, number in zip(group["params"], stored["params"], strict=True)
    }


def moment_name(owner: str, key: str) -> str:
    """What an entry of the optimizer's state is called: `exp_avg of lm_head.weight`."""
    return f"{key} of {owner}"


def moments(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the optimizer's state, with its name."""
    owners = moment_owners(model, optimizer)
    for number, values in optimizer.state_dict()["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                yield moment_name(owners[number], key), value


@torch.no_grad()
def first_not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first tensor that holds an infinity or no number (NaN), in this rank's part of it; None when all are finite."""
    held = ((name, own(tensor)) for name, tensor in tensors)
    named = [(name, tensor) for name, tensor in held if tensor.is_floating_point() and tensor.numel()]
    # Two numbers a tensor, so that a device is waited for once a tensor and gives no room for a mask of its size.
    for name, tensor in named:
        wide = tensor if tensor.element_size() > 1 else tensor.float()  # torch finds no extremes of float8
        low, high = torch.aminmax(wide)
        if not (math.isfinite(low.item()) and math.isfinite(high.item())):
            return name
    return None
