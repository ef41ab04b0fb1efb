"""A snapshot of weights and moments in memory that a writer shares: one copy of each tensor, and the training goes on.

Each slot is anonymous shared memory of a checkpoint's size (no file in /dev/shm, whose size a container limits), allocated once. With
two slots one is always whole: a snapshot goes into the slot that is not being written, and of those into the older.

On a GPU the copies run on a stream of their own, into pinned memory, beside the next forward and backward pass; only the next update
waits for them, on the device.
"""

import json
import logging
import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import clean_state_dict_for_safetensors
from isal import isal_zlib
from torch import Tensor

from trainer.checkpoint.format import random_states
from trainer.checkpoint.format.file_layout import (
    PAGE_BYTES,
    Checksum,
    FileImage,
    model_image,
    optimizer_image,
    unknown_form,
)
from trainer.checkpoint.format.tensor_names import moment_owners
from trainer.checkpoint.save.protocol import mark
from trainer.errors import CheckpointError

log = logging.getLogger(__name__)

SPARE_FRACTION = 0.1
"""The share of the machine's memory that slots leave free, whatever is free now."""

_POPULATE_WRITE = 23
"""MADV_POPULATE_WRITE of Linux 5.14: every page is there afterwards, so that the first snapshot is as fast as the others."""


def free_memory_bytes() -> int:
    """Bytes of memory this process can still take: the machine's, or a container's where that is less."""
    free = psutil.virtual_memory().available
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            with open(f"/sys/fs/cgroup/{limit}") as allowed, open(f"/sys/fs/cgroup/{used}") as taken:
                free = min(free, int(allowed.read()) - int(taken.read()))
        except (OSError, ValueError):
            continue  # no such limit here, or the word `max`
    return free


def slots_that_fit(slot_bytes: int, free_bytes: int, total_bytes: int) -> int:
    """How many slots of a size the memory has room for: 2, 1, or 0."""
    return int(min(2, max(0, free_bytes - SPARE_FRACTION * total_bytes) // slot_bytes))


@dataclass
class Slot:
    """One checkpoint's room in memory."""

    number: int
    descriptor: int
    memory: mmap.mmap
    pages: Tensor
    """The same bytes, uint8 [slot_bytes]."""
    step: int | None = None
    """The step whose snapshot it holds or is being filled with; None: nothing of worth."""
    copied: torch.cuda.Event | None = None
    """Says when a GPU's copies have arrived; None: they have."""


def make_slot(number: int, slot_bytes: int, device: torch.device) -> Slot:
    """Allocates a slot, every page of it, pinned where the tensors come from a GPU."""
    descriptor = os.memfd_create(f"snapshot-{number}")
    os.ftruncate(descriptor, slot_bytes)
    memory = mmap.mmap(descriptor, slot_bytes)
    mark(memory, None)
    try:
        memory.madvise(_POPULATE_WRITE)
    except OSError:
        log.info("snapshots: this kernel does not fill memory in advance; the first ones take longer")
    pages = torch.frombuffer(memory, dtype=torch.uint8)
    if device.type == "cuda":
        _pin(pages, device)
    return Slot(number, descriptor, memory, pages)


def _pin(pages: Tensor, device: torch.device) -> None:
    """Registers memory with CUDA, so that copies into it run beside the training; where that is refused they hold it up, and that is told.

    CUDA keeps the refusal as its last error, and torch would raise it at the next kernel that it starts, in the middle of a step: so one is
    started here that takes the error away.
    """
    code = int(torch.cuda.cudart().cudaHostRegister(pages.data_ptr(), pages.numel(), 0))
    if code == 0:
        return
    log.warning(
        "snapshots: their memory cannot be pinned (CUDA error %d); copies from the GPU hold the training up", code
    )
    try:
        _start_kernel(device)
    except RuntimeError as error:
        log.info("snapshots: what CUDA said of it: %s", str(error).splitlines()[0])
    _start_kernel(device)  # raises where the device itself has failed


def _start_kernel(device: torch.device) -> None:
    torch.empty(1, device=device).fill_(0.0)


class Layout:
    """Where everything lies in a slot; laid out once, as long as the tensors and the hyperparameters stay the same."""

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        state = optimizer.state_dict()
        self._tensors = _addresses(model, state)
        self._hyperparameters = _hyperparameters(state)
        marked, self._marks = _with_marked_rates(state)
        weights = dict(model.state_dict())
        if strided := [name for name, tensor in weights.items() if not tensor.is_contiguous()]:
            raise CheckpointError(
                f"a save in the background copies whole, contiguous tensors, and these are not: {', '.join(strided)}; set checkpoint.asynchronous=false"
            )
        self.images = [
            model_image(clean_state_dict_for_safetensors(weights)),
            optimizer_image(marked, moment_owners(model, optimizer)),
        ]
        # A buffer may hold an infinity by design, as a mask does.
        self._looked_at = {
            *(name for name, _ in model.named_parameters(remove_duplicate=False)),
            *(f.name for f in self.images[1].floats),
        }
        self.starts = [0, self.images[0].padded_bytes]
        self.num_bytes = sum(image.padded_bytes for image in self.images)
        self._rates = self._places_of_rates()

    def fits(self, model: torch.nn.Module, state: Mapping[str, Any]) -> bool:
        """Whether a snapshot of these would look the same but for the tensors' bytes and the learning rates."""
        return self._tensors == _addresses(model, state) and self._hyperparameters == _hyperparameters(state)

    def facts(self) -> list[dict[str, Any]]:
        """The images as the writer wants to know them."""
        return [
            {
                "name": image.name,
                "start": start,
                "num_bytes": image.num_bytes,
                "padded_bytes": image.padded_bytes,
                "checksums": [(c.start, c.num_bytes, list(c.places)) for c in image.checksums],
                "floats": [(f.name, f.start, f.num_bytes, f.type) for f in image.floats if f.name in self._looked_at],
            }
            for image, start in zip(self.images, self.starts, strict=True)
        ]

    def copies(self, slot: Slot) -> tuple[list[Tensor], list[Tensor]]:
        """What is copied where: the live tensors, and their places in a slot, of the same types and shapes."""
        sources = [tensor for image in self.images for _, tensor in image.tensors]
        places = [
            _place(slot.pages, start + offset, tensor)
            for image, start in zip(self.images, self.starts, strict=True)
            for offset, tensor in image.tensors
        ]
        return sources, places

    def write_fixed(self, memory: mmap.mmap) -> None:
        """Everything that is no tensor's and stays the same."""
        for image, start in zip(self.images, self.starts, strict=True):
            for offset, content in image.fixed:
                memory[start + offset : start + offset + len(content)] = content

    def write_rates(self, memory: mmap.mmap, rates: list[float]) -> None:
        """The learning rates of this step, which the optimizer's file states."""
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
    return [(tensor.data_ptr(), tensor.numel()) for tensor in (*model.state_dict().values(), *moments)]


def _hyperparameters(state: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{key: value for key, value in group.items() if key != "lr"} for group in state["param_groups"]]


def _with_marked_rates(state: Mapping[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
    """The state with a number in place of each group's rate that occurs nowhere else, and these numbers' bytes."""
    marks = [float(1234567 + number) * 1.000000123 for number in range(len(state["param_groups"]))]
    groups = [{**group, "lr": mark} for group, mark in zip(state["param_groups"], marks, strict=True)]
    return {**state, "param_groups": groups}, [struct.pack(">d", mark) for mark in marks]


def rates_of(optimizer: torch.optim.Optimizer) -> list[float]:
    """Each group's learning rate as the optimizer's file would state it."""
    return [float(group["lr"]) for group in optimizer.param_groups]


class Snapshots:
    """The slots of rank 0, and the copy into them."""

    def __init__(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, slots: list[Slot], device: torch.device
    ) -> None:
        self._model, self._optimizer, self.slots, self._device = model, optimizer, slots, device
        self.layout: Layout | None = None
        self._copies: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def is_laid_out(self) -> bool:
        """Whether the layout there is fits what is there to copy now."""
        return self.layout is not None and self.layout.fits(self._model, self._optimizer.state_dict())

    def lay_out(self) -> None:
        """Lays the files out, and writes into every slot what stays the same; what the slots held is gone."""
        self.layout = Layout(self._model, self._optimizer)
        if self.layout.num_bytes > len(self.slots[0].pages) - PAGE_BYTES:
            raise CheckpointError(
                f"a snapshot of {self.layout.num_bytes:,} bytes is larger than the memory that was set aside for it; set checkpoint.asynchronous=false"
            )
        for slot in self.slots:
            slot.step = None
            mark(slot.memory, None)
            self.layout.write_fixed(slot.memory)
        self._copies = {slot.number: self.layout.copies(slot) for slot in self.slots}

    def copy(self, slot: Slot, step: int) -> None:
        """Copies everything into a slot; on a GPU the copies are only begun, and `settle` is called before the next update."""
        assert self.layout is not None, "lay_out() first"
        slot.step = step
        mark(
            slot.memory, None
        )  # before the first byte changes: the writer may not have heard of it when this process dies
        self.layout.write_rates(slot.memory, rates_of(self._optimizer))
        sources, places = self._copies[slot.number]
        with torch.no_grad():
            if self._stream is None:
                torch._foreach_copy_(places, sources)
                return
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(self._stream):
                for place, source in zip(places, sources, strict=True):
                    place.copy_(source, non_blocking=True)
                slot.copied = torch.cuda.Event()
                slot.copied.record()

    def settle(self) -> None:
        """Makes the device's next work wait for copies that still read the weights."""
        if self._stream is not None and any(slot.copied for slot in self.slots):
            torch.cuda.current_stream(self._device).wait_stream(self._stream)


def slot_bytes_for(parameter_bytes: int, moment_bytes: int, num_tensors: int) -> int:
    """Room for a checkpoint whose optimizer may not have its moments yet: tensors, for each a record's names and headers, and the mark."""
    room = parameter_bytes + moment_bytes + num_tensors * 1024 + (1 << 18)
    return -(-room // PAGE_BYTES) * PAGE_BYTES + PAGE_BYTES


def small_files(accelerator: Accelerator, state: dict[str, Any], config_text: str) -> dict[str, bytes]:
    """This rank's files that hold neither weights nor moments, by name, as `Accelerator.save_state` would write them."""
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
