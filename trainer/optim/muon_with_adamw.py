"""Muon for the hidden matrices and AdamW for the rest, as one optimizer.

One object, because a trainer, Accelerate and a checkpoint each want one: one list of groups, one state, one state dict
in torch's format. Two optimizers of torch do the work on it; they own nothing and are handed the groups and the state
anew before each step, so whoever loads a state dict, moves a tensor or swaps a parameter does it in one place.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer

from trainer.optim.found_inf import found_inf_given, found_inf_of, reads_found_inf
from trainer.tensor_parts import divided, own, own_part_of, whole

STACK_BYTES = 2**20
"""How much of one shape is iterated together: small matrices gain a tenth by it, and large ones lose a tenth in large stacks
(`tests/benchmarks/muon.py` measures it)."""

CUDA_STACK_BYTES = 512 * 2**20
"""The same on a GPU, where fewer and larger kernels are what counts, and memory sets the bound."""


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
                inner = StackedMuon(own) if algorithm == "muon" else AdamW(own, fused=fused)
                self._algorithms[algorithm] = inner
                complete += inner.param_groups
        assert len(complete) == len(groups), "each group's algorithm is muon or adamw"
        super().__init__(complete, {})

    @property
    def reads_found_inf(self) -> bool:
        """Whether a step that is skipped on the device changes nothing; AdamW has that when it is fused."""
        return all(reads_found_inf(inner) for inner in self._algorithms.values())

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every group that has gradients, unless it is skipped."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for algorithm, inner in self._algorithms.items():
            inner.param_groups = [group for group in self.param_groups if group["algorithm"] == algorithm]
            inner.state = self.state
            with found_inf_given(inner, found_inf_of(self)):
                inner.step()
        return loss


class StackedMuon(Muon):
    """torch's Muon, with its groups and its state, that iterates equal shapes together and chooses the precision by the device."""

    reads_found_inf = True

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update of every parameter that has a gradient; bits of what it changes stay as they are where the step is skipped."""
        assert closure is None, "MuonWithAdamW has called it"
        found_inf = found_inf_of(self)
        is_taken = None if found_inf is None else found_inf == 0
        for group in self.param_groups:
            for parameters in stacks([parameter for parameter in group["params"] if parameter.grad is not None]):
                self._update(group, parameters, is_taken)

    def _update(self, group: dict[str, Any], parameters: Sequence[Tensor], is_taken: Tensor | None) -> None:
        """Parameters of one shape and device; `is_taken` is 0-d on it, None for a step that cannot be skipped.

        Of sharded ones each rank moves its part, gathers the matrices whole, one after the other, and iterates all that one that holds them would.
        """
        momentum, lr = group["momentum"], float(group["lr"])
        gradients = [own(parameter.grad) for parameter in parameters]
        buffers = [own(self._momentum_of(parameter)) for parameter in parameters]
        moved = _move(buffers, gradients, 1 - momentum, is_taken)
        updates = torch._foreach_lerp(gradients, moved, momentum) if group["nesterov"] else moved
        matrices = [whole(divided(update, parameter)) for update, parameter in zip(updates, parameters, strict=True)]
        directions = orthogonalize(
            torch.stack(matrices).to(iteration_dtype(matrices[0].device.type)),
            coefficients=group["ns_coefficients"],
            num_steps=group["ns_steps"],
            eps=group["eps"],
        )
        rows, columns = parameters[0].shape
        decay = 1 - lr * group["weight_decay"]
        if is_taken is not None:  # adding -0.0, and multiplying by 1, change no bit
            directions = torch.where(is_taken, directions, 0.0)
            decay = torch.where(is_taken, torch.full_like(is_taken, decay, dtype=parameters[0].dtype), 1.0)
        torch._foreach_mul_([own(parameter) for parameter in parameters], decay)
        for parameter, direction in zip(parameters, directions, strict=True):
            own(parameter).add_(own_part_of(direction, parameter), alpha=-lr * math.sqrt(max(1, rows / columns)))

    def _momentum_of(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter.grad, memory_format=torch.preserve_format)
        return state["momentum_buffer"]


def _move(buffers: list[Tensor], gradients: list[Tensor], weight: float, is_taken: Tensor | None) -> list[Tensor]:
    """The buffers moved towards the gradients, in place unless the step is skipped: then only what is returned has moved."""
    if is_taken is None:
        torch._foreach_lerp_(buffers, gradients, weight)
        return buffers
    moved = torch._foreach_lerp(buffers, gradients, weight)
    for buffer, new in zip(buffers, moved, strict=True):
        torch.where(is_taken, new, buffer, out=buffer)
    return list(moved)


def iteration_dtype(device_type: str) -> torch.dtype:
    """What the iteration computes in: bf16 on a GPU, as published; fp32 on every CPU.

    A processor without bf16 arithmetic multiplies in it at a fiftieth of fp32's speed, and the precision of a
    computation is not to depend on the processor.
    """
    return torch.bfloat16 if device_type == "cuda" else torch.float32


def stacks(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The parameters, in groups of one shape and device that are iterated together."""
    kinds: dict[tuple[Any, ...], list[Tensor]] = {}
    for parameter in parameters:
        kinds.setdefault((parameter.shape, parameter.dtype, parameter.device), []).append(parameter)
    for alike in kinds.values():
        limit = CUDA_STACK_BYTES if alike[0].device.type == "cuda" else STACK_BYTES
        most = max(1, limit // (alike[0].numel() * alike[0].element_size()))
        for first in range(0, len(alike), most):
            yield alike[first : first + most]


def orthogonalize(matrices: Tensor, *, coefficients: tuple[float, float, float], num_steps: int, eps: float) -> Tensor:
    """Each of the matrices [N, rows, columns] with all its singular values brought near 1, in the dtype they came in.

    The quintic Newton-Schulz iteration, whose coefficients let the singular values end anywhere between 0.5 and 1.5.

    eps     least norm that a matrix is divided by
    source  Jordan et al. 2024, kellerjordan.github.io/posts/muon; the arithmetic of torch.optim.Muon
    """
    a, b, c = coefficients
    is_tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.mT if is_tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)  # spectral norm at most 1
    for _ in range(num_steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x
