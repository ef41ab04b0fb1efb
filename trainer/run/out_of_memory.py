"""What is left behind when a GPU or the machine runs out of memory: who held it, and a paragraph that says what to do."""

import logging
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from trainer import files
from trainer.config.schema import Config
from trainer.errors import OutOfMemoryError, is_out_of_memory
from trainer.metrics.memory_advice import advice
from trainer.text import size

log = logging.getLogger(__name__)

MAX_ENTRIES = 100_000
"""Allocations and releases that are remembered, of several kilobytes each: the last few steps of a large model."""


def record_memory_history() -> None:
    """Begins to record every allocation of this process's GPU, with the line that made it; call it once the device is chosen.

    By torch's own figures a record takes about 2 microseconds of the training thread and several kilobytes of the machine's memory.
    """
    torch.cuda.memory._record_memory_history(stacks="python", max_entries=MAX_ENTRIES)
    entries = f"{MAX_ENTRIES:,}"
    log.info("profile.memory_history: the last %s allocations are recorded, about 2 us and some kB each", entries)


@contextmanager
def out_of_memory_explained(folder: Path, rank: int, config: Config, precision: Callable[[], str]) -> Iterator[None]:
    """Turns running out of memory into a paragraph; for a GPU's, leaves in `folder` what tells who held it.

    precision    gives the mode that the run computes in: no, bf16, fp16 or fp8
    raises       OutOfMemoryError, with the error itself as its cause
    """
    micro_batch = config.micro_batch
    try:
        yield
    except torch.OutOfMemoryError as error:
        left = [_leave(folder / f"memory-rank-{rank}.txt", "what is allocated", _summary)]
        if config.profile.memory_history:
            what = "who allocated it, line by line (drop it on https://pytorch.org/memory_viz)"
            left.append(_leave(folder / f"memory-rank-{rank}.pickle", what, _snapshot))
        else:
            what = "a snapshot that says which line of code allocated what"
            left.append(f"profile.memory_history=true would leave {what}")
        mode = precision()
        words = f"rank {rank} ran out of GPU memory in {_arithmetic(mode)}: {_first_line(error)} {advice(micro_batch, mode)} {'; '.join(left)}."
        raise OutOfMemoryError(words) from error
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        mode = precision()
        words = f"rank {rank} ran out of this machine's memory in {_arithmetic(mode)} ({_what_was_asked(error)})."
        raise OutOfMemoryError(f"{words} {advice(micro_batch, mode)}") from error


def _arithmetic(mode: str) -> str:
    return "fp32" if mode == "no" else mode


def _what_was_asked(error: BaseException) -> str:
    """How much could not be had, where torch says it; else the error's own words."""
    found = re.search(r"tried to allocate (\d+) bytes", str(error))
    return f"{size(int(found[1]))} more could not be had" if found else _first_line(error)


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
