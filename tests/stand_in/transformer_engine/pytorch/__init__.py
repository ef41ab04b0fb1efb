"""Layers and contexts of TransformerEngine's torch part, emulated. `RAN` records every forward pass of a linear layer."""

from transformer_engine.pytorch.contexts import STATE, autocast, fp8_autocast
from transformer_engine.pytorch.layers import RAN, LayerNorm, Linear, TransformerLayer


def is_fp8_available(return_reason: bool = False):
    return (True, "") if return_reason else True


is_fp8_block_scaling_available = is_mxfp8_available = is_nvfp4_available = is_fp8_available

__all__ = [
    "RAN",
    "STATE",
    "LayerNorm",
    "Linear",
    "TransformerLayer",
    "autocast",
    "fp8_autocast",
    "is_fp8_available",
    "is_fp8_block_scaling_available",
    "is_mxfp8_available",
    "is_nvfp4_available",
]
