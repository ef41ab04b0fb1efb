"""Whether the cluster file's torch.compile is used here."""

import os

import torch
from accelerate import Accelerator

from trainer.config.cluster import missing_compiler
from trainer.launch.logging_setup import warn_once_per_machine


def choose_compiler(uncompiled: str | None, use_cpu: bool) -> None:
    """Keeps the cluster file's torch.compile where it can work: on a CPU it needs a C++ compiler; `uncompiled` is another reason against it."""
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if without := left_uncompiled(backend, uncompiled, use_cpu):
        os.environ["ACCELERATE_DYNAMO_BACKEND"] = "no"
        warn_once_per_machine(without)
    elif backend != "no":
        # Accelerate's regional compilation runs all regions, in training and in evaluation, through one code object, whose eighth
        # variant would silently run uncompiled.
        torch._dynamo.config.recompile_limit = 64
        # Or every compiled block would be split where DistributedDataParallel's buckets end (the first holds 1 MB), also with one process:
        # gradients leave block by block as it is.
        torch._dynamo.config.optimize_ddp = False


def left_uncompiled(backend: str, uncompiled: str | None, use_cpu: bool) -> str | None:
    """One line on why torch.compile is left out though the cluster file asks for this backend; None when it is not."""
    if backend == "no":
        return None
    why = uncompiled or (missing_compiler() if backend == "inductor" and use_cpu else None)
    return f"torch.compile is left out: {why}" if why else None


def compile_backend(accelerator: Accelerator) -> str:
    """The torch.compile backend that the cluster file chose; `no` for none."""
    return accelerator.state.dynamo_plugin.backend.value.lower()
