"""A step that the device skips where the gradient is not finite: the optimizer reads that from a tensor, and the host waits for nothing.

The two attributes, `grad_scale` and `found_inf`, are those that torch's GradScaler sets on a fused optimizer.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainer.tensor_parts import own, replicated


def reads_found_inf(optimizer: Optimizer) -> bool:
    """Whether its step reads `found_inf`."""
    return getattr(optimizer, "reads_found_inf", getattr(optimizer, "_step_supports_amp_scaling", False))


@contextlib.contextmanager
def found_inf_given(optimizer: Optimizer, found_inf: Tensor | None) -> Iterator[None]:
    """The steps in this block change nothing where `found_inf` (0-d fp32 on the device) is 1; None: they are plain steps."""
    if found_inf is None:
        yield
        return
    parameter = next(parameter for group in optimizer.param_groups for parameter in group["params"])
    optimizer.grad_scale, optimizer.found_inf = None, replicated(found_inf, parameter)
    try:
        yield
    finally:
        del optimizer.grad_scale, optimizer.found_inf


def found_inf_of(optimizer: Optimizer) -> Tensor | None:
    """The tensor that this optimizer was given, 0-d; None outside of `found_inf_given`."""
    found_inf = getattr(optimizer, "found_inf", None)
    return None if found_inf is None else own(found_inf)


def found_inf(norm: Tensor) -> Tensor:
    """1 where this total norm of the gradients is not finite, else 0; 0-d fp32."""
    return (~torch.isfinite(norm)).to(torch.float32)
