"""Digests of the weights and moments that ranks hold alike: one flipped bit of one rank is found, and told by which rank.

A digest is a sum over the bits of every element, as a whole number, times an odd number that depends on its place, modulo 2**64. It is exact,
whatever the order of summation; one element that differs makes another sum.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

_CHUNK = 1 << 20
"""Elements at once: memory beside the tensors stays small."""
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_MULTIPLIERS = (0x9E3779B97F4A7C15 - (1 << 64), 0x2545F4914F6CDD1D)


def digest_of(tensors: Iterable[Tensor], device: torch.device) -> Tensor:
    """The digest of tensors in their order, int64 [] on a device; nothing is waited for but tensors of another device."""
    total = torch.zeros((), dtype=torch.int64, device=device)
    for tensor in tensors:
        bits = tensor.detach().contiguous().view(-1)
        for part in bits.view(_INTEGERS[bits.element_size()]).split(_CHUNK):
            places = torch.arange(1, 2 * len(part), 2, dtype=torch.int64, device=part.device)
            total = total * _MULTIPLIERS[0] + (part.long() * (places * _MULTIPLIERS[1])).sum().to(device)
    return total


def replicated_tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Weights and moments, in the order of the parameters."""
    parameters = list(model.parameters())
    known = getattr(optimizer, "optimizer", optimizer).state
    moments = (value for parameter in parameters for value in known.get(parameter, {}).values())
    return [*parameters, *(value for value in moments if isinstance(value, Tensor))]


def ranks_that_differ(digests: Sequence[int]) -> list[int]:
    """The ranks whose digest is not that of the most; all of them where none is, as of two. Empty where all are the same."""
    (most, number), *others = Counter(digests).most_common()
    if not others:
        return []
    is_known = number > others[0][1]
    return [rank for rank, digest in enumerate(digests) if not is_known or digest != most]
