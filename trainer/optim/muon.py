"""Muon for the hidden matrices and AdamW for the rest, as one optimizer.

One object, because a trainer, Accelerate and a checkpoint each want one: one list of groups, one state, one state dict
in torch's format. Two optimizers of torch do the work on it; they own nothing and are handed the groups and the state
anew before each step, so whoever loads a state dict, moves a tensor or swaps a parameter does it in one place.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import AdamW, Muon, Optimizer


class MuonWithAdamW(Optimizer):
    """An optimizer whose groups say in `algorithm` which of the two updates them.

    groups  dicts with `params`, `algorithm` (`muon` or `adamw`), `lr`, `weight_decay` and what else the
            algorithm reads; what is missing has torch's default
    source  Jordan et al. 2024 (Muon); Loshchilov & Hutter 2019 (AdamW)
    """

    def __init__(self, groups: list[dict[str, Any]], *, fused: bool = True) -> None:
        self._algorithms: dict[str, Optimizer] = {}
        complete = []
        for algorithm in ("muon", "adamw"):
            own = [group for group in groups if group["algorithm"] == algorithm]
            if own:
                # torch fills in each group's defaults; the groups it made become ours.
                inner = Muon(own) if algorithm == "muon" else AdamW(own, fused=fused)
                self._algorithms[algorithm] = inner
                complete += inner.param_groups
        assert len(complete) == len(groups), "each group's algorithm is muon or adamw"
        super().__init__(complete, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every group that has gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for algorithm, inner in self._algorithms.items():
            inner.param_groups = [group for group in self.param_groups if group["algorithm"] == algorithm]
            inner.state = self.state
            inner.step()
        return loss
