"""What is left behind when a GPU runs out of memory: who held it, and a paragraph that says what to do."""

import logging
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from trainer import files
from trainer.errors import GpuMemoryError

log = logging.getLogger(__name__)

MAX_ENTRIES = 100_000
"""Allocations and releases that are remembered, of several kilobytes each: the last few steps of a large model."""


def record_memory_history() -> None:
    """Begins to record every allocation of this process's GPU, with the line that made it; call it once the device is chosen.

    By torch's own figures a record takes about 2 microseconds of the training thread and several kilobytes of the machine's memory.
    """
    torch.cuda.memory._record_memory_history(stacks="python", max_entries=MAX_ENTRIES)
    log.info("profile.memory_history: the last %s allocations are recorded, about 2 us and some kB each", f"{MAX_ENTRIES:,}")


@contextmanager
def out_of_memory_explained(
    folder: Path, *, rank: int, micro_batch: int, precision: Callable[[], str], has_history: bool
) -> Iterator[None]:  # fmt: skip
    """Turns torch's OutOfMemoryError into a paragraph, and leaves in `folder` what tells who held the memory.

    precision    gives the mode that the run computes in: no, bf16, fp16 or fp8
    has_history  whether `record_memory_history` was called: then a snapshot is left too
    raises       GpuMemoryError, with torch's own error as its cause
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        left = [_leave(folder / f"memory-rank-{rank}.txt", "what is allocated", _summary)]
        if has_history:
            what = "who allocated it, line by line (drop it on https://pytorch.org/memory_viz)"
            left.append(_leave(folder / f"memory-rank-{rank}.pickle", what, _snapshot))
        else:
            left.append("profile.memory_history=true would leave a snapshot that says which line of code allocated what")
        mode = precision()
        arithmetic = "fp32" if mode == "no" else mode
        words = f"rank {rank} ran out of GPU memory in {arithmetic}: {_first_line(error)} {advice(micro_batch, mode)} {'; '.join(left)}."
        raise GpuMemoryError(words) from error


def advice(micro_batch: int, mode: str) -> str:
    """What to do about it, a sentence or two."""
    return f"{_smaller(micro_batch)} {_IN_MODE[mode]}" if mode in _IN_MODE else _smaller(micro_batch)


_IN_MODE = {
    "no": "A cluster file that says bf16 halves what is kept for the backward pass.",
    "fp8": "fp8 keeps copies of the weights beside them: precision.cache_weights=false frees them between micro-batches, a cluster file "
    "that says bf16 has none.",
}  # fmt: skip
"""What else takes memory in a precision, and how to save it."""


def _smaller(micro_batch: int) -> str:
    checkpointing = "model.gradient_checkpointing=true (a third more time)"
    if micro_batch == 1:
        return f"micro_batch is 1 already: set {checkpointing}, a shorter sequence_length, or a smaller model."
    smaller = micro_batch // 2 if micro_batch % 2 == 0 else 1
    return (
        f"Set micro_batch={smaller} instead of {micro_batch}: the same global_batch is then taken in more pieces, and what is learned is the "
        f"same; or set {checkpointing}."
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _summary() -> bytes:
    return torch.cuda.memory_summary().encode()


def _snapshot() -> bytes:
    return pickle.dumps(torch.cuda.memory._snapshot())


def _leave(path: Path, what: str, content: Callable[[], bytes]) -> str:
    """Writes a file, and says so; where that fails too, says that, since the error on its way is the one that matters."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(path, content())
    except Exception as error:
        return f"{path} could not be written ({type(error).__name__}: {error})"
    return f"{path} has {what}"
