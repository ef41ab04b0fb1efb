"""model.safetensors and optimizer.bin laid out in a slot of memory, for snapshots: where everything lies, found once."""

import mmap
import struct
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import clean_state_dict_for_safetensors
from isal import isal_zlib
from torch import Tensor

from trainer.checkpoint.format.file_layout import Checksum, FileImage, model_image, optimizer_image, unknown_form
from trainer.checkpoint.format.tensor_names import moment_owners
from trainer.errors import CheckpointError
from trainer.tensor_parts import empty_whole, is_part, own


class WholeMemoryLayout:
    """See MemoryLayout, whose one implementation this is; laid out once, as long as tensors and hyperparameters stay the same.

    In place of a tensor of which each rank holds a part stands an empty one of its whole shape; what goes there is gathered for each snapshot.
    """

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        state = optimizer.state_dict()
        self._tensors, self._hyperparameters = _addresses(model, state), _hyperparameters(state)
        self._frozen = {_address(p) for p in model.parameters() if not p.requires_grad and p.numel()}
        self._gathered: dict[int, Tensor] = {}
        marked, self._marks = _with_marked_rates(self._without_parts(state))
        weights = self._whole_weights(model)
        if strided := [name for name, tensor in weights.items() if not tensor.is_contiguous()]:
            raise CheckpointError(
                f"a save in the background copies whole, contiguous tensors, and these are not: {', '.join(strided)}; set checkpoint.asynchronous=false"
            )
        self.images = [
            model_image(clean_state_dict_for_safetensors(weights)),
            optimizer_image(marked, moment_owners(model, optimizer)),
        ]
        # A buffer may hold an infinity by design, as a mask does.
        self._looked_at = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        self._looked_at |= {floats.name for floats in self.images[1].floats}
        self.starts = [0, self.images[0].padded_bytes]
        self._placed = list(zip(self.images, self.starts, strict=True))
        self.num_bytes = sum(image.padded_bytes for image in self.images)
        self._rates = self._places_of_rates()

    def fits(self, model: torch.nn.Module, state: Mapping[str, Any]) -> bool:
        return self._tensors == _addresses(model, state) and self._hyperparameters == _hyperparameters(state)

    def facts(self) -> list[dict[str, Any]]:
        return [
            {
                "name": image.name,
                "start": start,
                "num_bytes": image.num_bytes,
                "padded_bytes": image.padded_bytes,
                "checksums": [(c.start, c.num_bytes, list(c.places)) for c in image.checksums],
                "floats": [(f.name, f.start, f.num_bytes, f.type) for f in image.floats if f.name in self._looked_at],
            }
            for image, start in self._placed
        ]

    def copies(self, pages: Tensor, *, frozen: bool = False) -> tuple[list[Tensor], list[Tensor]]:
        all_of_them = [(start + offset, tensor) for image, start in self._placed for offset, tensor in image.tensors]
        there = [(at, tensor) for at, tensor in all_of_them if tensor.data_ptr() not in self._gathered]
        tensors = [(at, tensor) for at, tensor in there if (_address(tensor) in self._frozen) == frozen]
        return [tensor for _, tensor in tensors], [_place(pages, at, tensor) for at, tensor in tensors]

    def gathered(self, pages: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Of `parts_in_order` each, and its place."""
        places = {
            tensor.data_ptr(): _place(pages, start + offset, tensor)
            for image, start in self._placed
            for offset, tensor in image.tensors
        }
        return [(part, places[address]) for address, part in self._gathered.items()]

    def _whole_weights(self, model: torch.nn.Module) -> dict[str, Tensor]:
        """The model's state dict; a parameter that has two names is one tensor under both."""
        parameters = dict(model.named_parameters(remove_duplicate=False))
        stand_ins = {id(parameter): self._stand_in(parameter) for parameter in model.parameters()}
        return {
            name: stand_ins[id(parameters[name])] if is_part(tensor) else tensor
            for name, tensor in model.state_dict().items()
        }

    def _without_parts(self, state: Mapping[str, Any]) -> dict[str, Any]:
        moments = {
            number: {key: self._stand_in(value) for key, value in values.items()}
            for number, values in state["state"].items()
        }
        return {**state, "state": moments}

    def _stand_in(self, value: Any) -> Any:
        """An empty tensor in place of one that is gathered, whose memory is not touched; everything else is left as it is."""
        if not is_part(value):
            return value
        empty = empty_whole(value)
        self._gathered[empty.data_ptr()] = value.detach()
        return empty

    def write_fixed(self, memory: mmap.mmap) -> None:
        for image, start in self._placed:
            for offset, content in image.fixed:
                memory[start + offset : start + offset + len(content)] = content

    def write_rates(self, memory: mmap.mmap, rates: list[float]) -> None:
        for place, rate in zip(self._rates, rates, strict=True):
            memory[place : place + 8] = struct.pack(">d", rate)

    def _places_of_rates(self) -> list[int]:
        """Where each group's rate stands in a slot; that record's checksum joins those that are filled in when writing."""
        image, start = self.images[1], self.starts[1]
        places = []
        for rate in self._marks:
            found = [(offset + content.index(rate)) for offset, content in image.fixed if rate in content]
            if len(found) != 1:
                raise unknown_form(f"a learning rate stands in {len(found)} places of it")
            places.append(start + found[0])
        image.checksums.append(_pickle_checksum(image))
        return places


def parts_in_order(model: torch.nn.Module, state: Mapping[str, Any]) -> list[Tensor]:
    """Everything that ranks gather for a checkpoint, in the order in which all do: moments, then weights.

    state  the optimizer's state dict
    """
    moments = (value for values in state["state"].values() for value in values.values())
    return [tensor for tensor in (*moments, *model.parameters()) if is_part(tensor)]


def _pickle_checksum(image: FileImage) -> Checksum:
    """The checksum of data.pkl, the first record of the zip, which changes with the learning rates."""
    offset, content = image.fixed[0]
    name_bytes, extra_bytes = struct.unpack_from("<HH", content, 26)
    start = offset + 30 + name_bytes + extra_bytes
    signature = content.index(b"PK\x07\x08", start)
    while struct.unpack_from("<I", content, signature + 4)[0] != isal_zlib.crc32(content[start:signature]):
        signature = content.index(b"PK\x07\x08", signature + 1)
    last_offset, last = image.fixed[-1]
    entry = last_offset + last.index(b"PK\x01\x02")
    return Checksum(start, signature - start, (signature + 4, entry + 16))


def _place(pages: Tensor, start: int, tensor: Tensor) -> Tensor:
    num_bytes = tensor.numel() * tensor.element_size()
    room = pages[start : start + num_bytes]
    return room.view(tensor.dtype).view(tensor.shape) if start % tensor.element_size() == 0 else room


def _addresses(model: torch.nn.Module, state: Mapping[str, Any]) -> list[tuple[int, int]]:
    moments = [value for values in state["state"].values() for value in values.values() if isinstance(value, Tensor)]
    return [_address(tensor) for tensor in (*model.state_dict().values(), *moments)]


def _address(tensor: Tensor) -> tuple[int, int]:
    return own(tensor).data_ptr(), tensor.numel()


def _hyperparameters(state: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{key: value for key, value in group.items() if key != "lr"} for group in state["param_groups"]]


def _with_marked_rates(state: Mapping[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
    """The state with a number in place of each group's rate that occurs nowhere else, and these numbers' bytes."""
    marks = [float(1234567 + number) * 1.000000123 for number in range(len(state["param_groups"]))]
    groups = [{**group, "lr": mark} for group, mark in zip(state["param_groups"], marks, strict=True)]
    return {**state, "param_groups": groups}, [struct.pack(">d", mark) for mark in marks]
