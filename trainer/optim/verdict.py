"""Whether a step is taken, told to an optimizer as a tensor: the device knows it and acts by it, and the host waits for nothing.

The two attributes are those by which torch's GradScaler tells a fused optimizer the same.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.optim import Optimizer


def takes_a_verdict(optimizer: Optimizer) -> bool:
    """Whether its step reads `found_inf`; sharded parameters do not go together with a plain tensor."""
    sharded = any(hasattr(p, "full_tensor") for group in optimizer.param_groups for p in group["params"])
    reads_it = getattr(optimizer, "takes_a_verdict", getattr(optimizer, "_step_supports_amp_scaling", False))
    return reads_it and not sharded


@contextlib.contextmanager
def verdict(optimizer: Optimizer, found_inf: Tensor | None) -> Iterator[None]:
    """The steps in this block change nothing where `found_inf` (0-d fp32 on the device) is 1; None: they are plain steps."""
    if found_inf is None:
        yield
        return
    optimizer.grad_scale, optimizer.found_inf = None, found_inf
    try:
        yield
    finally:
        del optimizer.grad_scale, optimizer.found_inf


def verdict_of(optimizer: Optimizer) -> Tensor | None:
    """What this optimizer was told, 0-d; None where it was told nothing."""
    return getattr(optimizer, "found_inf", None)


def refusing(norm: Tensor) -> Tensor:
    """The verdict on gradients of this total norm, 0-d fp32: 1 where it is not finite."""
    return (~torch.isfinite(norm)).to(torch.float32)
