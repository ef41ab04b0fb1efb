"""The files of a checkpoint as `Accelerator.load_state` reads them: rank 0 has all weights and moments, each rank its random streams.

model.safetensors, optimizer.bin      weights and moments, whole
scaler.pt                             where fp16 is scaled
random_states_R.json                  each rank's random streams, which our own resume reads; .pkl: the same for Accelerate
custom_checkpoint_0.pkl, config.yaml  the registered state, and the settings
"""

import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch.nn import Module
from torch.optim import Optimizer

from trainer.checkpoint.format import random_states
from trainer.checkpoint.format.by_name import Former, by_present_numbers
from trainer.checkpoint.format.layout import MemoryLayout
from trainer.checkpoint.format.memory_layout import WholeMemoryLayout
from trainer.checkpoint.format.tensor_names import moment_owners
from trainer.errors import CheckpointError


class WholeFiles:
    """See FileLayout."""

    gathers = False

    def __init__(self, former: Former = MappingProxyType({})) -> None:
        """`former`: what stands in the groups of an optimizer's file of an earlier version."""
        self._former = former

    def large_files(self, parameter_bytes: int, moment_bytes: int) -> dict[str, int]:
        return {"model.safetensors": parameter_bytes, "optimizer.bin": moment_bytes}

    def in_memory(self, model: Module, optimizer: Optimizer) -> MemoryLayout:
        return WholeMemoryLayout(model, optimizer)

    def small_files(self, accelerator: Accelerator, state: dict[str, Any], config_text: str) -> dict[str, bytes]:
        rank, streams = accelerator.process_index, random_states.capture(accelerator.device)
        small = {
            f"random_states_{rank}.json": json.dumps(streams).encode(),
            f"random_states_{rank}.pkl": random_states.accelerate_file(accelerator.step),
        }
        if accelerator.is_main_process:
            small["custom_checkpoint_0.pkl"] = random_states.to_bytes(state)
            small["config.yaml"] = config_text.encode()
            if accelerator.scaler is not None:
                small["scaler.pt"] = random_states.to_bytes(accelerator.scaler.state_dict())
        return small

    def gather(self, model: Module, optimizer: Optimizer) -> None:
        raise AssertionError("nobody asks the other ranks for what rank 0 has")

    def write(
        self, folder: Path, accelerator: Accelerator, model: Module, optimizer: Optimizer, state: dict[str, Any]
    ) -> None:
        accelerator.save_state(str(folder))
        streams = random_states.capture(accelerator.device)
        path = folder / f"random_states_{accelerator.process_index}.json"
        path.write_text(json.dumps(streams), encoding="utf-8")

    def load(self, folder: Path, accelerator: Accelerator, model: Module, optimizer: Optimizer | None) -> None:
        with known_format(folder / "model.safetensors") as path:
            load_model(model, path, strict=True)
        if optimizer is not None:
            saved, owners = load_tensors(folder / "optimizer.bin"), moment_owners(model, optimizer)
            optimizer.load_state_dict(by_present_numbers(saved, optimizer.state_dict(), owners, self._former))
        if accelerator.scaler is not None and (folder / "scaler.pt").is_file():
            accelerator.scaler.load_state_dict(load_tensors(folder / "scaler.pt"))

    def load_random_streams(self, folder: Path, accelerator: Accelerator) -> None:
        with known_format(folder / f"random_states_{accelerator.process_index}.json") as path:
            random_states.restore(json.loads(path.read_text(encoding="utf-8")), accelerator.device)


def load_tensors(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    """A file of torch.save that holds tensors and plain values; anything that would have to be executed is refused.

    mmap  whether tensors are read from the disk where they are used
    """
    with known_format(path):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


@contextmanager
def known_format(path: Path) -> Iterator[Path]:
    """What a file with the right digest is not written in by this trainer becomes a paragraph."""
    try:
        yield path
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{path} cannot be loaded although its digest is right ({reason}): it is not what this trainer writes; resume from another checkpoint"
        ) from None
