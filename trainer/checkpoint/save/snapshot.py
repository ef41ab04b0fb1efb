"""A snapshot of weights and moments in memory that a writer shares: one copy of each tensor, and the training goes on.

Each slot is anonymous shared memory of a checkpoint's size (no file in /dev/shm, whose size a container limits), allocated once. With
two slots one is always whole: a snapshot goes into the slot that is not being written, and of those into the older.

On a GPU the copies run on a stream of their own, into pinned memory, beside the next forward and backward pass; only the next update
waits for them, on the device.
"""

import logging
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from trainer.checkpoint.format.file_layout import PAGE_BYTES
from trainer.checkpoint.format.layout import FileLayout, MemoryLayout
from trainer.checkpoint.save.protocol import mark
from trainer.errors import CheckpointError
from trainer.tensor_parts import whole
from trainer.text import size

log = logging.getLogger(__name__)

SPARE_FRACTION = 0.1
"""The share of the machine's memory that slots leave free, whatever is free now."""

_POPULATE_WRITE = 23
"""MADV_POPULATE_WRITE of Linux 5.14: every page is there afterwards, so that the first snapshot is as fast as the others."""


def free_memory_bytes() -> int:
    """Bytes of memory this process can still take: the machine's, or a container's where that is less."""
    free = psutil.virtual_memory().available
    groups = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
    for limit, used in groups:
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


class Snapshots:
    """The slots of rank 0, and the copy into them."""

    def __init__(
        self,
        model: Module,
        optimizer: Optimizer,
        slots: list[Slot],
        device: torch.device,
        file_layout: FileLayout,
        *,
        all_gather: Callable[[], None] = lambda: None,
    ) -> None:
        """`all_gather` has the other ranks take part in a snapshot of tensors that are gathered, which begins with it."""
        self._model, self._optimizer, self._file_layout = model, optimizer, file_layout
        self._all_gather = all_gather
        self.slots, self._device = slots, device
        self.layout: MemoryLayout | None = None
        self._copies: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def is_laid_out(self) -> bool:
        """Whether the layout there is fits what is there to copy now."""
        return self.layout is not None and self.layout.fits(self._model, self._optimizer.state_dict())

    def lay_out(self) -> MemoryLayout:
        """Lays the files out, and writes into every slot what stays the same; what the slots held is gone."""
        self.layout = self._file_layout.in_memory(self._model, self._optimizer)
        if self.layout.num_bytes > len(self.slots[0].pages) - PAGE_BYTES:
            raise CheckpointError(
                f"a snapshot of {self.layout.num_bytes:,} bytes is larger than the memory that was set aside for it; set checkpoint.asynchronous=false"
            )
        for slot in self.slots:
            slot.step = None
            mark(slot.memory, None)
            self.layout.write_fixed(slot.memory)
        self._copies = {slot.number: self.layout.copies(slot.pages) for slot in self.slots}
        self._copy_frozen(self.layout)
        return self.layout

    @torch.no_grad()
    def _copy_frozen(self, layout: MemoryLayout) -> None:
        """Copies what is not trained, from the device once, and from slot to slot: it is the same in every snapshot."""
        sources, places = layout.copies(self.slots[0].pages, frozen=True)
        if not sources:
            return
        torch._foreach_copy_(places, sources)
        for slot in self.slots[1:]:
            torch._foreach_copy_(layout.copies(slot.pages, frozen=True)[1], places)
        once, each = (
            sum(tensor.nbytes for tensor in group) for group in (places, self._copies[self.slots[0].number][0])
        )
        log.info("snapshots: each copies %s; %s that is frozen was copied once for all of them", size(each), size(once))

    def copy(self, slot: Slot, step: int) -> None:
        """Copies everything that is trained into a slot; on a GPU the copies are only begun, and `settle` is called before the next update."""
        assert self.layout is not None, "lay_out() first"
        slot.step = step
        # Before the first byte changes: the writer may not have heard of it when this process dies.
        mark(slot.memory, None)
        self.layout.write_rates(slot.memory, [float(group["lr"]) for group in self._optimizer.param_groups])
        sources, places = self._copies[slot.number]
        with torch.no_grad():
            if self._file_layout.gathers:
                self._gather(slot)
            if not sources:
                return
            if self._stream is None:
                torch._foreach_copy_(places, sources)
                return
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(self._stream):
                for place, source in zip(places, sources, strict=True):
                    place.copy_(source, non_blocking=True)
                slot.copied = torch.cuda.Event()
                slot.copied.record()

    def _gather(self, slot: Slot) -> None:
        """Copies what ranks hold in parts, one tensor after the other: that of the largest is all the memory that it takes besides."""
        assert self.layout is not None
        pairs = self.layout.gathered(slot.pages)
        self._all_gather()
        for part, place in pairs:
            tensor = whole(part)
            place.copy_(tensor if place.dtype == tensor.dtype else tensor.contiguous().view(-1).view(torch.uint8))

    def settle(self) -> None:
        """Makes the device's next work wait for copies that still read the weights."""
        if self._stream is not None and any(slot.copied for slot in self.slots):
            torch.cuda.current_stream(self._device).wait_stream(self._stream)


def slot_bytes_for(parameter_bytes: int, moment_bytes: int, num_tensors: int) -> int:
    """Room for a checkpoint whose optimizer may not have its moments yet: tensors, for each a record's names and headers, and the mark."""
    room = parameter_bytes + moment_bytes + num_tensors * 1024 + (1 << 18)
    return -(-room // PAGE_BYTES) * PAGE_BYTES + PAGE_BYTES
