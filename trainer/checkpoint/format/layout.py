"""How the state of a run lies in the files of a checkpoint: the seam where a second way of doing it begins.

whole_files.py: rank 0 writes all weights and moments. gathered_files.py writes the same files of a sharded model. One part per rank would be
a third class beside them, chosen in run/build.py; saving, restoring, retention and the mirror see only what stands here.
"""

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer


class MemoryLayout(Protocol):
    """Where the bytes of the large files lie in a slot of memory; the same as long as `fits`."""

    num_bytes: int

    def fits(self, model: Module, state: Mapping[str, Any]) -> bool:
        """Whether a snapshot of these would look the same but for the tensors' bytes and the learning rates."""

    def facts(self) -> list[dict[str, Any]]:
        """The files as the writer's process needs to know them, plain values: the fields of `writer.Image`."""

    def copies(self, pages: Tensor, *, frozen: bool = False) -> tuple[list[Tensor], list[Tensor]]:
        """What is copied where: the live tensors, and their places in a slot's bytes, uint8 [slot_bytes].

        frozen   those that are not trained, which one copy serves for all snapshots; otherwise all others
        """

    def gathered(self, pages: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What all ranks gather for a snapshot, in the order in which they do: this rank's part of each, and the place of the whole."""

    def write_fixed(self, memory: mmap.mmap) -> None:
        """Writes everything that is no tensor's and stays the same."""

    def write_rates(self, memory: mmap.mmap, rates: list[float]) -> None:
        """Writes each parameter group's learning rate of this step, which the optimizer's file states."""


class FileLayout(Protocol):
    """The files of one checkpoint, written and read. Every method is called on every rank that takes part."""

    gathers: bool
    """Whether ranks hold parts, which all gather, one after the other, while rank 0 takes a snapshot."""

    def gather(self, model: Module, optimizer: Optimizer) -> None:
        """What the other ranks do meanwhile."""

    def large_files(self, parameter_bytes: int, moment_bytes: int) -> dict[str, int]:
        """Bytes of the files that the disk must have room for, by name, before there is a checkpoint."""

    def in_memory(self, model: Module, optimizer: Optimizer) -> MemoryLayout:
        """Lays the large files out for snapshots. raises CheckpointError where these tensors cannot be"""

    def small_files(self, accelerator: Accelerator, state: dict[str, Any], config_text: str) -> dict[str, bytes]:
        """This rank's other files, by name."""

    def write(
        self, folder: Path, accelerator: Accelerator, model: Module, optimizer: Optimizer, state: dict[str, Any]
    ) -> None:
        """Writes this rank's files while training waits; `state` is the registered one. raises OSError, RuntimeError, SafetensorError"""

    def load(self, folder: Path, accelerator: Accelerator, model: Module, optimizer: Optimizer | None) -> None:
        """Loads weights and moments, bit for bit, without executing anything from the files.

        Moments go to the parameters whose names they have; the optimizer's groups and hyperparameters stay as they are.

        optimizer  None where the moments mean something else to this run's
        raises     CheckpointError for a file that this layout does not write
        """

    def load_random_streams(self, folder: Path, accelerator: Accelerator) -> None:
        """Restores this rank's random streams, of as many ranks as have written them. raises CheckpointError"""
