"""From a position of the run to this rank's micro-batches: no state, no random numbers, nothing to save.

    position = sequences consumed so far, over all ranks
      ids = sequence_at(position .. position + G)          data/order.py    the global batch, equal on every rank
      this rank's ids = ids.reshape(A, W, B)[:, rank]      A = G / (B * W)
      window [B, T + 1] -> inputs [B, T], labels [B, T]    labels are the inputs one token on

So the world size and the micro-batch may change between two launches, and step k still holds the same sequences.
"""

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
import xxhash

from trainer.config.batch import accumulation_steps
from trainer.contracts import IGNORED_LABEL
from trainer.data.order import beyond, sequence_at
from trainer.data.shards import TokenDataset

_JOIN_SECONDS = 10.0

T = TypeVar("T")


@dataclass(frozen=True)
class MicroBatch:
    """What goes through the model at once, int64: inputs [B, T] and labels [B, T], the token after each input."""

    inputs: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True)
class Batch:
    """One optimizer step's data: this rank's micro-batches, and what the whole global batch amounts to.

    first_sequence  position of its first sequence
    num_sequences   of the global batch, over all ranks
    num_tokens      predicted in the global batch, over all ranks
    digest          16 hex digits over the ids of the global batch in order: equal on every rank, for every world size
    """

    first_sequence: int
    micro_batches: list[MicroBatch]
    num_sequences: int
    num_tokens: int
    digest: str


@dataclass(kw_only=True, eq=False)
class TokenLoader:
    """Global batches in the order of the run, this rank's part of them on its device.

    global_batch, micro_batch  sequences
    raises                     ConfigError when they do not fit the world size
    """

    dataset: TokenDataset = field(kw_only=False)
    global_batch: int
    micro_batch: int
    rank: int
    world_size: int
    seed: int
    device: torch.device
    stepped_over: Sequence[tuple[int, int]] = ()
    """Stretches of positions that the run never trains on: (first, the one after the last)."""

    def __post_init__(self) -> None:
        self.accumulation = accumulation_steps(self.global_batch, self.micro_batch, self.world_size)
        assert 0 <= self.rank < self.world_size, f"rank {self.rank} of {self.world_size}"
        self.device = _indexed(self.device)

    def epoch_at(self, first_sequence: int) -> float:
        """How many times the data has been gone through when this position is reached."""
        return first_sequence / self.dataset.num_sequences

    def batches(self, first_sequence: int) -> Generator[Batch, None, None]:
        """All batches from a position on, without end. A thread reads one batch ahead, until the generator is closed.

        raises  DataError when a token is outside the vocabulary, in the thread that asks for the batch
        """
        size, stretches = self.global_batch, tuple(self.stepped_over)
        first = beyond(first_sequence, size, stretches)
        with closing(
            _read_ahead(self._read, first, lambda position: beyond(position + size, size, stretches))
        ) as reads:
            for position, windows, digest in reads:
                micro_batches = [_to_micro_batch(window, self.device) for window in windows]
                num_tokens = self.global_batch * self.dataset.sequence_length
                yield Batch(position, micro_batches, self.global_batch, num_tokens, digest)

    def sequences_of(self, position: int) -> np.ndarray:
        """The ids int64 [G] of the sequences of the global batch that begins at a position."""
        positions = np.arange(position, position + self.global_batch, dtype=np.int64)
        return sequence_at(positions, self.dataset.num_sequences, self.seed)

    def _read(self, position: int) -> tuple[int, torch.Tensor, str]:
        """Position, this rank's windows [A, B, T + 1] in host memory, and the digest of the global batch."""
        ids = self.sequences_of(position)
        digest = xxhash.xxh3_64_hexdigest(ids.astype("<i8", copy=False).tobytes())
        mine = ids.reshape(self.accumulation, self.world_size, self.micro_batch)[:, self.rank]
        windows = torch.from_numpy(self.dataset.sequences(mine.reshape(-1)))
        windows = windows.view(self.accumulation, self.micro_batch, -1)
        return position, _pinned(windows, self.device), digest


def validation_batches(
    dataset: TokenDataset,
    *,
    num_sequences: int | None,
    micro_batch: int,
    rank: int,
    world_size: int,
    device: torch.device | str,
) -> Iterator[MicroBatch]:
    """The first `num_sequences` sequences in file order (None or too many: all), dealt out to the ranks.

    The set is the same for every world size and micro-batch. Every rank yields the same number of micro-batches, each
    [B, T]: rows that nobody needs hold inputs 0 and labels -100, and on some ranks a whole micro-batch may.
    """
    total = dataset.num_sequences if num_sequences is None else min(num_sequences, dataset.num_sequences)
    device = _indexed(device)
    for first in range(0, total, micro_batch * world_size):
        start = first + rank * micro_batch
        real = max(0, min(micro_batch, total - start))
        windows = np.zeros((micro_batch, dataset.sequence_length + 1), dtype=np.int64)
        windows[:real] = dataset.sequences(np.arange(start, start + real, dtype=np.int64))
        batch = _to_micro_batch(_pinned(torch.from_numpy(windows), device), device)
        batch.labels[real:] = IGNORED_LABEL
        yield batch


def _indexed(device: torch.device | str) -> torch.device:
    """The device with its number: a new thread's current CUDA device is 0, whatever the rank's is."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _pinned(windows: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The same tensor in page-locked memory when it goes to a GPU, so that the copy need not wait."""
    if device.type != "cuda":
        return windows
    with torch.cuda.device(device):  # or each rank would open a context on GPU 0
        return windows.pin_memory()


def _to_micro_batch(windows: torch.Tensor, device: torch.device) -> MicroBatch:
    """Windows [B, T + 1] in host memory -> inputs and labels [B, T] on the device, contiguous.

    Called by the thread that trains, so that the copy is in order with its stream.
    """
    windows = windows.to(device, non_blocking=True)
    return MicroBatch(inputs=windows[:, :-1].contiguous(), labels=windows[:, 1:].contiguous())


def _read_ahead(read: Callable[[int], T], first: int, following: Callable[[int], int]) -> Generator[T, None, None]:
    """read(first), read(following(first)), ... where a daemon thread is always one ahead of the consumer."""
    requests: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    answers: queue.SimpleQueue[T | BaseException] = queue.SimpleQueue()

    def work() -> None:
        while (position := requests.get()) is not None:
            try:
                answers.put(read(position))
            except BaseException as error:  # handed over: it belongs to the thread that waits for the batch
                answers.put(error)

    thread = threading.Thread(target=work, name="read-ahead", daemon=True)
    thread.start()
    try:
        requests.put(first)
        while True:
            answer = answers.get()
            if isinstance(answer, BaseException):
                raise answer
            first = following(first)
            requests.put(first)
            yield answer
    finally:
        requests.put(None)
        thread.join(_JOIN_SECONDS)  # a read that hangs on a dead disk must not keep the program from ending
