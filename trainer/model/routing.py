"""Models with experts: the auxiliary loss that keeps them evenly loaded, as transformers computes it, and which experts were drawn.

The training loss of a micro-batch is its cross-entropy plus the coefficient times the auxiliary loss of its routers, the same sum that
transformers' forward pass with `output_router_logits` returns. The auxiliary loss is not a sum over tokens (it multiplies two means), so
it belongs to the tokens that it was taken of: the micro-batch of one rank. A step's is the mean over its micro-batches and
ranks, as its gradient is; another micro-batch or number of ranks makes it another number, slightly.
"""

import math
import sys
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

_COEFFICIENTS = ("router_aux_loss_coef", "aux_loss_coef")
"""Attributes of a transformers model under which it keeps what its auxiliary loss is multiplied by."""


class Routing:
    """The routers of a model: their auxiliary loss, and what they did since `begin`."""

    def __init__(self, coefficient: float, num_experts: int, experts_per_token: int) -> None:
        self.coefficient, self.num_experts, self.experts_per_token = coefficient, num_experts, experts_per_token
        self._is_counting = False
        self._aux_losses: Tensor | None = None
        self._passes = 0
        self._draws: Tensor | None = None

    def __str__(self) -> str:
        part = f"{self.coefficient:g} x their auxiliary loss" if self.coefficient else "no auxiliary loss"
        return f"{part} in the training loss"

    def begin(self, *, is_counting: bool) -> None:
        """Forgets what was; `is_counting`: which experts are drawn is counted from here on."""
        self._is_counting, self._aux_losses, self._passes, self._draws = is_counting, None, 0, None

    @torch.compiler.disable
    def add(self, aux_loss: Tensor, router_logits: tuple[Tensor, ...]) -> None:
        """Takes what one forward pass in training gave: a scalar, and for each layer with experts [N, E]."""
        aux_loss = aux_loss.detach()
        self._aux_losses = aux_loss if self._aux_losses is None else self._aux_losses + aux_loss
        self._passes += 1
        if self._is_counting:
            draws = self._count(router_logits)
            self._draws = draws if self._draws is None else self._draws + draws

    @torch.no_grad()
    def _count(self, router_logits: tuple[Tensor, ...]) -> Tensor:
        """How often each expert was drawn, [L, E] float64; the likeliest of each token are, as in the auxiliary loss."""
        counts = []
        for logits in router_logits:
            drawn = logits.topk(self.experts_per_token, dim=-1).indices.flatten()
            experts = torch.arange(self.num_experts, device=drawn.device)
            counts.append((drawn.unsqueeze(1) == experts).sum(0, dtype=torch.float64))
        return torch.stack(counts)

    @property
    def aux_loss(self) -> Tensor:
        """The mean over the micro-batches since `begin`, a scalar on the device."""
        assert self._aux_losses is not None, "there was a pass in training since"
        return self._aux_losses / self._passes

    @property
    def draws(self) -> Tensor | None:
        """[L, E] how often each expert was drawn since `begin`, by layers with experts in their order; None where it was not counted."""
        return self._draws


def routing_of(model: PreTrainedModel) -> Routing | None:
    """What watches the routers of a model; None for one whose class in transformers has no auxiliary loss of routers."""
    coefficient = next((getattr(model, name) for name in _COEFFICIENTS if hasattr(model, name)), None)
    experts, per_token = getattr(model, "num_experts", None), getattr(model, "num_experts_per_tok", None)
    if coefficient is None or not experts or not per_token or _balancing(model) is None:
        return None
    return Routing(float(coefficient), experts, per_token)


def aux_loss_of(model: PreTrainedModel, output: Any) -> Tensor:
    """The auxiliary loss of a forward pass with `output_router_logits`: the model's own word where it gave one, else as its class computes it."""
    own = getattr(output, "aux_loss", None)
    if own is not None:
        return own
    balancing = _balancing(model)
    assert balancing is not None, "routing_of has found it"
    return balancing(output.router_logits, model.num_experts, model.num_experts_per_tok, None)


def _balancing(model: PreTrainedModel) -> Any:
    """The function by which the class computes it; each family's module has its own."""
    return getattr(sys.modules[type(model).__module__], "load_balancing_loss_func", None)


def load_facts(draws: Tensor, experts_per_token: int) -> Tensor:
    """[L, 3] of draws [L, E]: the least and the greatest fraction of tokens that an expert saw, and the entropy of the draws.

    The entropy is a fraction of the greatest one: 1 where all experts are drawn alike, and the less, the fewer are drawn.
    """
    shares = draws / draws.sum(1, keepdim=True)
    entropy = -torch.special.xlogy(shares, shares).sum(1) / math.log(draws.shape[1])
    fractions = shares * experts_per_token
    return torch.stack((fractions.amin(1), fractions.amax(1), entropy), dim=1)
