"""What the weights of a model are known by: one digest of all of them, whatever type their files had."""

import math

import torch
import xxhash
from torch import Tensor
from transformers import PreTrainedModel

from trainer.errors import ConfigError


def weights_digest(model: PreTrainedModel, name: str) -> str:
    """xxh3-128 of every tensor of a model with its name and shape, in the order of the names; one that is tied counts once.

    Each is read once, and one at a time is copied to the host.

    name    of where they come from, for people
    raises  ConfigError with the first tensor that holds an infinity or no number
    """
    tensors: dict[int, tuple[str, Tensor]] = {}
    for key, tensor in sorted(model.state_dict(keep_vars=True).items()):
        tensors.setdefault(id(tensor), (key, tensor.detach()))
    hasher = xxhash.xxh3_128()
    for key, tensor in tensors.values():
        if not _is_finite(tensor):
            raise ConfigError(
                f"model.init_from {name}: {key} holds numbers that are not finite (NaN or an infinity), so every loss would be none; copy or "
                "download the model again, or take another"
            )
        hasher.update(f"{key} {tensor.dtype} {list(tensor.shape)}\n".encode())
        hasher.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return hasher.hexdigest()


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    low, high = torch.aminmax(tensor)
    return math.isfinite(low.item()) and math.isfinite(high.item())
