"""Whether a memory can hold a run at all: a bound from below, reported before the first step instead of by the system's out-of-memory killer."""

import torch

from trainer.config.schema import Config
from trainer.errors import OutOfMemoryError
from trainer.host_checks import machine_bytes
from trainer.metrics.memory_advice import advice
from trainer.text import size

_BYTES = {"no": 4, "fp8": 1}
"""Bytes in which a precision keeps a number for the backward pass; 2 where it is not named."""


def least_bytes(
    model: torch.nn.Module, *, micro_batch: int, sequence_length: int, precision: str, num_parts: int = 1
) -> int:
    """Bytes that one process needs at the least: fp32 weights, of what is trained gradients and one moment, and each block's input for the backward pass.

    num_parts  into which the model is divided; each process has all of its weights until it is
    """
    held = sum(parameter.numel() * (12 if parameter.requires_grad else 4) for parameter in model.parameters())
    parameters = held if num_parts == 1 else max(held // num_parts, 4 * sum(p.numel() for p in model.parameters()))
    layers, width = (getattr(model.config, name, None) for name in ("num_hidden_layers", "hidden_size"))
    kept = layers * width * micro_batch * sequence_length if isinstance(layers, int) and isinstance(width, int) else 0
    return parameters + _BYTES.get(precision, 2) * kept


def check_memory(
    model: torch.nn.Module,
    device: torch.device,
    config: Config,
    precision: str,
    num_local_processes: int,
    num_parts: int = 1,
) -> None:
    """Refuses a run that this device's memory cannot hold.

    model                of the run, on any device, the meta device included
    num_local_processes  that share the machine's memory, where the device is a CPU
    num_parts            into which the model is divided
    raises               OutOfMemoryError with figures
    """
    micro_batch, sequence_length = config.micro_batch, config.sequence_length
    shape = {"micro_batch": micro_batch, "sequence_length": sequence_length}
    one = least_bytes(model, **shape, precision=precision, num_parts=num_parts)
    if device.type == "cuda":
        needed, there, whose = one, torch.cuda.get_device_properties(device).total_memory, "GPU"
    else:
        needed, there, whose = one * num_local_processes, machine_bytes(), "machine"
    if needed > there:
        raise OutOfMemoryError(
            f"micro_batch {micro_batch} sequences of {sequence_length} tokens need {size(needed)} of memory at the least, and this {whose} has "
            f"{size(there)}. {advice(micro_batch, precision)}"
        )
