"""Which share of a model's weights a token meets: all of them, but of experts those that are drawn for it."""

from collections.abc import Callable, Sequence
from typing import Any

_EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_k", "moe_topk")
_NUM_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
"""Fields of a transformers config, the likeliest first."""


def active_share(name: str, shape: Sequence[int], field: Callable[[str], Any]) -> float:
    """The share of a parameter that a token meets: 1, or less for experts.

    field  gives a field of the model's transformers config by its name, None for one that is not there

    Experts lie along the first dimension of a parameter, or in a parameter each whose name says so.
    """
    visited, experts = _first(field, _EXPERTS_PER_TOKEN), _first(field, _NUM_EXPERTS)
    if not visited or not experts:
        return 1.0
    is_stacked = len(shape) == 3 and shape[0] == experts
    return min(1.0, visited / experts) if is_stacked or ".experts." in name else 1.0


def _first(field: Callable[[str], Any], names: Sequence[str]) -> int:
    return next((value for name in names if isinstance(value := field(name), int)), 0)
