"""How the model is parallel: what the step asks of it, and today's one answer. `parallel_of` chooses; a sharded way is a second class here."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from accelerate import Accelerator


class Parallel(Protocol):
    """What differs between a model that each rank holds whole and one that is sharded. Every method is called on every rank."""

    def unwrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model inside of what `prepare` gave back, for passes without gradients."""

    def no_sync(self, model: torch.nn.Module) -> AbstractContextManager[None]:
        """Backward passes in this block keep their gradients on the rank; the first one after it sums them over the ranks."""

    def clip_grad_norm(self, parameters: Iterable[torch.nn.Parameter], max_norm: float) -> torch.Tensor:
        """Scales the gradient to a norm of at most `max_norm`; returns the norm of the whole gradient before, the same on every rank."""


class Replicated:
    """Each rank holds the whole model, wrapped in DistributedDataParallel; a process that is alone holds it bare."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator

    def unwrap(self, model: torch.nn.Module) -> torch.nn.Module:
        return model.module if isinstance(model, torch.nn.parallel.DistributedDataParallel) else model

    def no_sync(self, model: torch.nn.Module) -> AbstractContextManager[None]:
        return self._accelerator.no_sync(model)

    def clip_grad_norm(self, parameters: Iterable[torch.nn.Parameter], max_norm: float) -> torch.Tensor:
        return self._accelerator.clip_grad_norm_(parameters, max_norm)


def parallel_of(accelerator: Accelerator) -> Parallel:
    """The way of this run; `make_accelerator` refuses every kind of group but those that are replicated."""
    return Replicated(accelerator)
