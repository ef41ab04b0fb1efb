"""How the model is parallel: what step and evaluation ask of it, and today's one answer. `parallel_of` chooses; a sharded way is a second class here."""

import ctypes
from collections.abc import Iterable
from contextlib import AbstractContextManager
from enum import Enum
from typing import Protocol

import torch
from accelerate import Accelerator


class Reads(Enum):
    """What work beside training reads of the model; it decides on which ranks the work runs."""

    OWN_PART = "each rank does its share of the work, or looks at its own passes"
    WHOLE_MODEL = "all weights or gradients, or passes of inputs that are on no other rank: one rank is enough where it holds them all"


class Parallel(Protocol):
    """What differs between a model that each rank holds whole and one that is sharded. Every method is called on every rank."""

    def unwrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model inside of what `prepare` gave back, for passes without gradients."""

    def no_sync(self, model: torch.nn.Module) -> AbstractContextManager[None]:
        """Backward passes in this block keep their gradients on the rank; the first one after it sums them over the ranks."""

    def clip_grad_norm(self, parameters: Iterable[torch.nn.Parameter], max_norm: float) -> torch.Tensor:
        """Scales the gradient to a norm of at most `max_norm`; returns the norm of the whole gradient before, the same on every rank."""

    def runs_here(self, reads: Reads) -> bool:
        """Whether work that reads this much of the model runs on this rank; what it found is written down by rank 0 alone."""

    def end(self, model: torch.nn.Module) -> None:
        """Waits for every rank and ends the group; after it no collective is possible. `model` is what `prepare` gave back."""


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

    def runs_here(self, reads: Reads) -> bool:
        return reads is Reads.OWN_PART or self._accelerator.is_main_process

    def end(self, model: torch.nn.Module) -> None:
        """Ends the group, and keeps what DistributedDataParallel holds of it until this process ends.

        Its reducer has a reference of its own to the group. Freed after the group was left, it would be the last one, and the group's
        destructor would wait for a thread of gloo while holding Python's lock, which that thread takes to free a tensor: now and then a
        finished run would never end. A reducer that is never freed leaves that work to the end of the process.
        """
        if isinstance(model, torch.nn.parallel.DistributedDataParallel):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(model.reducer))
        self._accelerator.wait_for_everyone()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def parallel_of(accelerator: Accelerator) -> Parallel:
    """The way of this run; `make_accelerator` refuses every kind of group but those that are replicated."""
    return Replicated(accelerator)
