"""Signs of life: each rank writes its step and what it does into memory that its launch can read, also when the rank is stuck in C.

A launch makes one file in /dev/shm for all its ranks and names it in the environment; a rank writes into its own slot of it, at each step and
each change of what it does. That takes some microseconds, waits for nothing and touches no disk. Without such a file nothing is written.
"""

import mmap
import os
import struct
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

BEATS = "TRAINER_BEATS"
"""The environment variable with the file's path."""

TRAINING = "training"

_SLOT = struct.Struct("<QQQd?15sQ")
"""How often it was written, the process, the step, when (monotonic), whether it computes on a GPU, what it does, and how often again."""
_SLOT_BYTES = 64
_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Beat:
    """What a rank last said."""

    number: int
    """How many it has said."""
    pid: int
    step: int
    """The last that it has finished."""
    at: float
    """By the clock of time.monotonic, which all processes of a machine share."""
    on_gpu: bool
    phase: str


class Board:
    """The slots of all ranks of a launch on this machine, on the side of the launch."""

    def __init__(self, num_ranks: int) -> None:
        """raises OSError where there is no room in memory"""
        folder = _MEMORY if _MEMORY.is_dir() else None
        with tempfile.NamedTemporaryFile(prefix="trainer-beats-", dir=folder, delete=False) as file:
            file.truncate(num_ranks * _SLOT_BYTES)
            self._memory = mmap.mmap(file.fileno(), num_ranks * _SLOT_BYTES)
            self.path = Path(file.name)
        self._num_ranks = num_ranks

    @property
    def environment(self) -> Mapping[str, str]:
        """What the ranks find it by."""
        return {BEATS: str(self.path)}

    def read(self) -> dict[int, Beat]:
        """What each rank last said; one that has said nothing, or is just writing, is left out."""
        found = {}
        for rank in range(self._num_ranks):
            number, pid, step, at, on_gpu, phase, again = _SLOT.unpack_from(self._memory, rank * _SLOT_BYTES)
            if number and number == again:
                found[rank] = Beat(number, pid, step, at, on_gpu, phase.rstrip(b"\0").decode())
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._memory.close()
        self.path.unlink(missing_ok=True)


class _Rank:
    """This process's slot."""

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None
        self._place = int(os.environ.get("LOCAL_RANK", "0")) * _SLOT_BYTES
        self._number = self._step = 0
        self._phase, self._on_gpu = "starting", False
        if path := os.environ.get(BEATS):
            try:
                with open(path, "r+b") as file:
                    self._memory = mmap.mmap(file.fileno(), 0)
            except (OSError, ValueError):  # it belongs to a launch that has ended
                self._memory = None

    def write(self, step: int | None = None, phase: str | None = None, on_gpu: bool | None = None) -> str:
        """Says what has changed; returns what this process did before."""
        before, self._phase = self._phase, phase or self._phase
        self._step = self._step if step is None else step
        self._on_gpu = self._on_gpu if on_gpu is None else on_gpu
        if self._memory is not None:
            self._number += 1
            word = self._phase.encode()[:15]
            facts = (os.getpid(), self._step, time.monotonic(), self._on_gpu, word)
            _SLOT.pack_into(self._memory, self._place, self._number, *facts, self._number - 1)
            _SLOT.pack_into(self._memory, self._place, self._number, *facts, self._number)
        return before


_rank: _Rank | None = None


def beat(step: int | None = None, phase: str | None = None, on_gpu: bool | None = None) -> str:
    """Says that this rank lives, and what of its step, its phase and its device has changed; returns the phase before."""
    global _rank
    if _rank is None:
        _rank = _Rank()
    return _rank.write(step, phase, on_gpu)


@contextmanager
def phase(name: str) -> Iterator[None]:
    """In this block the rank does something else, which takes its own time."""
    before = beat(phase=name)
    try:
        yield
    finally:
        beat(phase=before)
