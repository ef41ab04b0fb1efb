"""A tensor of which each rank holds a part (a DTensor), or all of it: one set of words for both.

A plain tensor is its own part and its own whole, so that what is written with these words computes the same bits for it as without them.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


def is_part(tensor: Any) -> bool:
    """Whether this rank holds a part of it only."""
    return isinstance(tensor, DTensor)


def own(tensor: Tensor) -> Tensor:
    """What this rank holds of it, in its memory; there may be no row of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of it, on its device; where ranks hold parts every rank calls this, and gets a copy."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def place(tensor: Tensor) -> tuple[slice, ...]:
    """Where this rank's part lies in the whole."""
    if not isinstance(tensor, DTensor):
        return tuple(slice(0, size) for size in tensor.shape)
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))


def own_part_of(whole: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a whole tensor that is divided as `like` is; a view."""
    return whole[place(like)] if is_part(like) else whole


def divided(own: Tensor, like: Tensor) -> Tensor:
    """What this rank holds, as a tensor that is divided as `like` is."""
    if not isinstance(like, DTensor):
        return own
    return DTensor.from_local(
        own, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def replicated(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor that all ranks hold alike, in the form in which it goes together with `like`."""
    if not isinstance(like, DTensor):
        return tensor
    mesh = like.device_mesh
    return DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)


def sum_over_parts(numbers: Tensor, like: Tensor) -> Tensor:
    """The sum, over the ranks that hold parts of `like`, of what each has computed of its own; in place."""
    if isinstance(like, DTensor):
        for group in like.device_mesh.get_all_groups():
            dist.all_reduce(numbers, group=group)
    return numbers


def elements(tensor: Tensor, stride: int) -> tuple[Tensor, int]:
    """Of every `stride`-th element of the whole, counted row by row, those that this rank holds, and the number of the first of them."""
    held = own(tensor)
    if not is_part(tensor) or not held.numel():
        return held.reshape(-1)[::stride], 0
    assert held.shape[1:] == tensor.shape[1:], "whole rows are dealt out"
    begin = place(tensor)[0].start * (held.numel() // len(held))
    first = -(-begin // stride)
    return held.reshape(-1)[first * stride - begin :: stride], first


def empty_whole(tensor: Tensor) -> Tensor:
    """A tensor on the CPU of the shape of the whole, whose memory nobody touches; a plain tensor is left as it is."""
    return torch.empty(tensor.shape, dtype=tensor.dtype) if is_part(tensor) else tensor
