"""What goes wrong inside the processes of a run in month.py, which read, step by step, what the harness wants (plugin.py plants it).

In the folder named by FOLDER lie
    plan.json         which global batches are bad: {"nan": [step, ...], "spike": [...]}; the same in every launch, since bad data stays bad
    told.json         instead of that, which batches to skip: what a straight run is told
    raise-RANK        one exception, once: the words in it; by `memory` in front one that says that memory is full
    full, hangs       as long as it is there, the disk of the checkpoints is full, or does not answer
"""

import errno
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

FOLDER = "TRAINER_MONTH"
PLAN, TOLD, RAISE, FULL, HANGS = "plan.json", "told.json", "raise", "full", "hangs"
LARGE = 50.0
"""A spike's loss is so many times what it would be."""

_WRITER = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r}); from tests.chaos.planted import write; write()"
"""What Python runs in the writer's place: the writer, on a disk that the harness fills and hangs."""


def _folder() -> Path:
    return Path(os.environ[FOLDER])


def plant() -> None:
    """Called in each rank, before its model is built."""
    from trainer import files, loop
    from trainer.checkpoint.save import writer_client

    rank = int(os.environ.get("RANK", "0"))
    if (_folder() / TOLD).exists():
        loop.step_if_finite = _skipping(loop.step_if_finite, json.loads((_folder() / TOLD).read_text()))
        loop.accumulate_gradients = _counting(loop.accumulate_gradients)
        return
    loop.accumulate_gradients = _spoiled(loop.accumulate_gradients, rank)
    files._write_all = _on_a_bad_disk(files._write_all)
    writer_client._COMMAND = [sys.executable, "-c", _WRITER]


def write() -> None:
    from trainer import files
    from trainer.checkpoint.save import writer

    files._write_all = _on_a_bad_disk(files._write_all)
    writer.main()


_step = 0


def _counting(real):
    def accumulate(run, batch):
        global _step
        _step = run.progress.step + 1
        return real(run, batch)

    return accumulate


def _skipping(real, told):
    """No update of the batches that one is told to skip, whatever they hold."""

    def step_if_finite(optimizer, grad_norm):
        if _step not in told:
            real(optimizer, grad_norm)

    return step_if_finite


def _spoiled(real, rank):
    """Losses of bad batches, on the last rank alone, are not finite or large, whenever they are computed; and what is to be raised is."""
    is_last = rank == int(os.environ.get("WORLD_SIZE", "1")) - 1
    bad: dict[str, float] = {}

    def accumulate(run, batch):
        _raise(rank)
        if is_last and batch.digest not in bad and (factor := _factor(run.progress.step + 1)):
            bad[batch.digest] = factor
        if batch.digest not in bad:
            return real(run, batch)
        hook = run.model.register_forward_hook(lambda _model, _given, loss: loss * bad[batch.digest])
        try:
            return real(run, batch)
        finally:
            hook.remove()

    return accumulate


def _factor(step: int) -> float | None:
    try:
        plan = json.loads((_folder() / PLAN).read_text())
    except FileNotFoundError:
        return None
    if step in plan.get("nan", ()):
        return float("nan")
    return LARGE if step in plan.get("spike", ()) else None


def _raise(rank: int) -> None:
    path = _folder() / f"{RAISE}-{rank}"
    if path.exists():
        words = path.read_text()
        path.unlink()
        raise MemoryError(words) if words.startswith("memory") else RuntimeError(words)


def _on_a_bad_disk(real):
    def write_all(*arguments: Any) -> None:
        while (_folder() / HANGS).exists():
            time.sleep(0.02)
        if (_folder() / FULL).exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*arguments)

    return write_all
