"""The same files for a model of which each rank holds a part: rank 0 writes what all gather, each rank loads its part of them.

A save costs every rank the gathering of the whole model, tensor by tensor, and rank 0 memory for all of it. In exchange a checkpoint does not know
how many ranks there were, nor whether they held parts.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import clean_state_dict_for_safetensors
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from trainer.checkpoint.format.by_name import by_present_numbers
from trainer.checkpoint.format.memory_layout import parts_in_order
from trainer.checkpoint.format.tensor_names import moment_owners
from trainer.checkpoint.format.whole_files import WholeFiles, known_format, load_tensors
from trainer.errors import CheckpointError
from trainer.tensor_parts import divided, is_part, own, own_part_of, place, whole


class GatheredFiles(WholeFiles):
    """See FileLayout."""

    gathers = True

    def gather(self, model: Module, optimizer: Optimizer) -> None:
        for tensor in parts_in_order(model, optimizer.state_dict()):
            whole(tensor)

    def write(
        self, folder: Path, accelerator: Accelerator, model: Module, optimizer: Optimizer, state: dict[str, Any]
    ) -> None:
        held, found = optimizer.state_dict(), {}
        for tensor in parts_in_order(model, held):
            gathered = whole(tensor.detach())
            if accelerator.is_main_process:
                found[id(tensor)] = gathered.cpu()
        for name, content in self.small_files(accelerator, state, "").items():
            if name != "config.yaml":
                (folder / name).write_bytes(content)
        if not accelerator.is_main_process:
            return
        parameters = dict(model.named_parameters(remove_duplicate=False))
        weights = {
            name: found.get(id(parameters.get(name)), tensor).contiguous()
            for name, tensor in model.state_dict().items()
        }
        save_file(clean_state_dict_for_safetensors(weights), folder / "model.safetensors", metadata={"format": "pt"})
        moments = {
            number: {key: found.get(id(value), value) for key, value in values.items()}
            for number, values in held["state"].items()
        }
        torch.save({**held, "state": moments}, folder / "optimizer.bin")

    def load(self, folder: Path, accelerator: Accelerator, model: Module, optimizer: Optimizer | None) -> None:
        with known_format(folder / "model.safetensors") as path:
            _load_weights(path, model)
        if optimizer is not None:
            saved, owners = load_tensors(folder / "optimizer.bin", mmap=True), moment_owners(model, optimizer)
            state = by_present_numbers(saved, optimizer.state_dict(), owners, self._former)
            optimizer.load_state_dict({**state, "state": _own_moments(state["state"], optimizer)})


@torch.no_grad()
def _load_weights(path: Path, model: Module) -> None:
    """Copies each weight's part from the file; every weight must be there, under one of its names, and nothing else."""
    wanted = model.state_dict()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with safe_open(path, "pt") as file:
        there = list(file.keys())
        loaded = {id(parameters[name]) for name in there if name in parameters}
        strange = [name for name in there if name not in wanted]
        lacking = [name for name in wanted if name not in there and id(parameters.get(name)) not in loaded]
        if strange or lacking:
            raise CheckpointError(
                f"{path} is not of this model: it lacks {', '.join(lacking) or 'nothing'}, and what the model does not have is "
                f"{', '.join(strange) or 'nothing'}; resume from another checkpoint"
            )
        for name in there:
            target = wanted[name]
            if list(file.get_slice(name).get_shape()) != list(target.shape):
                raise CheckpointError(
                    f"{path}: {name} has another shape than in this model; resume from another checkpoint"
                )
            if own(target).numel():
                own(target).copy_(file.get_slice(name)[place(target)] if is_part(target) else file.get_tensor(name))


def _own_moments(moments: Mapping[int, Any], optimizer: Optimizer) -> dict[int, dict[str, Any]]:
    """This rank's part of each moment that is divided as its parameter is, in memory of its own."""
    numbered = zip(optimizer.param_groups, optimizer.state_dict()["param_groups"], strict=True)
    parameters = {
        number: parameter
        for group, stored in numbered
        for number, parameter in zip(stored["params"], group["params"], strict=True)
    }

    def part(value: Any, parameter: Tensor) -> Any:
        if not isinstance(value, Tensor) or value.shape != parameter.shape or not is_part(parameter):
            return value
        held = own_part_of(value, parameter).to(parameter.device, copy=True, memory_format=torch.contiguous_format)
        return divided(held, parameter)

    return {
        number: {key: part(value, parameters[number]) for key, value in values.items()}
        for number, values in moments.items()
    }
