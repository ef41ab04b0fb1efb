"""What happens to the logits of a chunk between the head's products, as one function that torch.compile makes one kernel of.

Passes of single operations over logits in bf16 move some 34 bytes for each: a copy in fp32, log-probabilities, probabilities, the target's
entry, a copy in bf16. Within one kernel a logit is read twice and written once, in the precision of the products, and fp32 lives in registers.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

NO_TARGET = -1
"""The target of a row that counts for nothing."""


def log_likelihoods(
    logits: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    vocab_size: int,
    scale: float | None,
    factor: float = 1.0,
    cap: float | None = None,
) -> Tensor:
    """The log-probability of each row's target; where `scale` is given, the logits become `scale` times their gradient.

    That is softmax - one hot, times the slope of what a family does to its logits after the head (after_head.py).

    logits      [R, Vp], of any float type; ids from `vocab_size` on are padding and have no probability
    targets     [R, 1] int32, below `vocab_size` or NO_TARGET, whose row has a log-probability and a gradient of zero
    bias        [Vp] or None, added to the logits
    factor, cap of AfterHead
    returns     [R, 1] in nats, fp32; all arithmetic is in fp32, or in fp64 for logits in fp64
    """
    # The target is found by comparison and not by an index: an indexed read beside the write in place would make two kernels of one.
    values = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if bias is not None:
        values = values + bias
    if factor != 1.0:
        values = values * factor
    if cap is not None:
        share = torch.tanh(values / cap)
        values = share * cap
    ids = torch.arange(logits.shape[1], dtype=torch.int32, device=logits.device)
    if vocab_size < logits.shape[1]:
        values = torch.where(ids < vocab_size, values, float("-inf"))
    is_target, counts = ids == targets, targets != NO_TARGET
    at_target = torch.where(is_target, values, 0.0).sum(1, keepdim=True)
    largest = values.amax(1, keepdim=True)
    log_sum = (values - largest).exp().sum(1, keepdim=True).log()
    log_likelihood = torch.where(counts, (at_target - largest) - log_sum, 0.0)
    if scale is not None:
        # expm1, or the gradient at the target of a certain prediction would be a difference of equal numbers.
        gradient = torch.where(is_target, torch.expm1(log_likelihood), ((values - largest) - log_sum).exp())
        if cap is not None:
            gradient = gradient * (1 - share * share)
        logits.copy_(torch.where(counts, gradient * (scale * factor), 0.0))
    return log_likelihood


@functools.cache
def compiled_log_likelihoods() -> Callable[..., Tensor]:
    """The same, compiled at the first call for each shape and type; raises where it cannot be whole."""
    return torch.compile(log_likelihoods, dynamic=False, fullgraph=True)
