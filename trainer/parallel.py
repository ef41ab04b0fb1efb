"""How the model is parallel: what step, evaluation and checkpoints ask of it. `parallel_of` chooses: `Replicated` (DDP) or `Sharded` (FSDP2)."""

import ctypes
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from enum import Enum
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend
from accelerate.utils.modeling import get_mixed_precision_context_manager
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from trainer.errors import ConfigError


class Reads(Enum):
    """What work beside training reads of the model; it decides on which ranks the work runs."""

    OWN_PART = "each rank does its share of the work, or looks at its own passes"
    WHOLE_MODEL = "all weights or gradients, or passes of inputs that are on no other rank: one rank is enough where it holds them all"


class Parallel(Protocol):
    """What differs between a model that each rank holds whole and one that is sharded. Every method is called on every rank."""

    is_sharded: bool
    """Whether each rank holds a part of every weight, so that a pass of the model is one of all ranks."""

    def prepare(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        """Has Accelerate prepare them. raises ConfigError where this model cannot be parallel in this way"""

    def unwrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model inside of what `prepare` gave back, for passes without gradients."""

    def no_sync(self, model: torch.nn.Module) -> AbstractContextManager[None]:
        """Backward passes in this block keep their gradients on the rank, where that is possible; the first one after it sums them over the ranks."""

    def clip_grad_norm(self, parameters: Iterable[torch.nn.Parameter], max_norm: float) -> torch.Tensor:
        """Scales the gradient to a norm of at most `max_norm`; returns the norm of the whole gradient before, the same on every rank."""

    def runs_here(self, reads: Reads) -> bool:
        """Whether work that reads this much of the model runs on this rank; what it found is written down by rank 0 alone."""

    def uncompiled(self) -> AbstractContextManager[Any]:
        """In this block nothing is compiled for the shapes of what the bare model is given: samples and tasks have many."""

    def agree_on(self, tokens: list[int]) -> list[int]:
        """The tokens that a model's text goes on with, on every rank where the work runs: of one that is sharded, rank 0's."""

    def end(self, model: torch.nn.Module) -> None:
        """Waits for every rank and ends the group; after it no collective is possible. `model` is what `prepare` gave back."""


class Replicated:
    """Each rank holds the whole model, wrapped in DistributedDataParallel; a process that is alone holds it bare."""

    is_sharded = False

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator

    def prepare(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        return self._accelerator.prepare(model, optimizer)

    def unwrap(self, model: torch.nn.Module) -> torch.nn.Module:
        return model.module if isinstance(model, torch.nn.parallel.DistributedDataParallel) else model

    def no_sync(self, model: torch.nn.Module) -> AbstractContextManager[None]:
        return self._accelerator.no_sync(model)

    def clip_grad_norm(self, parameters: Iterable[torch.nn.Parameter], max_norm: float) -> torch.Tensor:
        return self._accelerator.clip_grad_norm_(parameters, max_norm)

    def runs_here(self, reads: Reads) -> bool:
        return reads is Reads.OWN_PART or self._accelerator.is_main_process

    def uncompiled(self) -> AbstractContextManager[Any]:
        return nullcontext()  # `prepare` gave back a compiled copy

    def agree_on(self, tokens: list[int]) -> list[int]:
        return tokens

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


class Sharded:
    """Each rank holds a part of every weight, gradient and moment, by torch's fully_shard; a block's weights are gathered for its passes.

    What is computed is what Replicated computes, in another order of summation. In bf16 weights are rounded before they are gathered, norms'
    and the embedding's too, and the passes run under the same autocast.
    """

    is_sharded = True

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator

    def prepare(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        accelerator, compiler = self._accelerator, self._accelerator.state.dynamo_plugin
        if compiler.backend != DynamoBackend.NO and not compiler.use_regional_compilation:
            raise ConfigError(
                "dynamo_config of the cluster file compiles the whole model at once, and a sharded one is gathered block by block; write "
                "dynamo_use_regional_compilation: true"
            )
        if accelerator.native_amp:  # which Accelerate leaves out for FSDP2
            autocast = get_mixed_precision_context_manager(True, accelerator.autocast_handler)
            model.forward = autocast(model.forward)
        try:
            model, optimizer = accelerator.prepare(model, optimizer)
        except ValueError as error:
            if "transformer layer class" not in str(error):
                raise
            raise ConfigError(
                f"fsdp_config.fsdp_transformer_layer_cls_to_wrap of the cluster file does not fit this model ({error}); remove it, and the blocks are found"
            ) from None
        model.register_forward_hook(_let_go_without_gradients)
        return model, optimizer

    def unwrap(self, model: torch.nn.Module) -> torch.nn.Module:
        return model

    def no_sync(self, model: torch.nn.Module) -> AbstractContextManager[None]:
        """Nothing is kept back: a gradient that is not summed would be as large as the whole model's, on each rank."""
        return nullcontext()

    def clip_grad_norm(self, parameters: Iterable[torch.nn.Parameter], max_norm: float) -> torch.Tensor:
        norm = self._accelerator.clip_grad_norm_(parameters, max_norm)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def runs_here(self, reads: Reads) -> bool:
        return True

    def uncompiled(self) -> AbstractContextManager[Any]:
        return torch.compiler.set_stance("force_eager")  # the blocks themselves are compiled

    def agree_on(self, tokens: list[int]) -> list[int]:
        """Rank 0's: one rank that read another number would take another number of passes, and the others would wait for it."""
        said = [tokens]
        torch.distributed.broadcast_object_list(said)
        return said[0]

    def end(self, model: torch.nn.Module) -> None:
        """Ends the group, and keeps what fully_shard holds of it until this process ends; see Replicated."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(model))
        self._accelerator.wait_for_everyone()
        torch.distributed.destroy_process_group()


def _let_go_without_gradients(model: torch.nn.Module, *_: Any) -> None:
    """Lets the gathered weights go after a pass that no backward pass follows, which would do it: a model's parameters are its parts again."""
    if not torch.is_grad_enabled():
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def parallel_of(accelerator: Accelerator) -> Parallel:
    """The way of this run; `make_accelerator` refuses every kind of group but those two."""
    return Sharded(accelerator) if accelerator.is_fsdp2 else Replicated(accelerator)
