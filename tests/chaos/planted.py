"""What goes wrong inside the processes of a run in month.py, which read, step by step, what the harness wants (plugin.py plants it).

In the folder named by FOLDER lie
    spoil             the next batch that no launch has taken is bad: {"kind": "nan", "spike" or "shard", "after": the newest step that one has taken}
    bad.json          which batches are bad by now, by their steps: {"nan": [step, ...], "spike": [...]}; in every launch, as bad data is;
                      "shard": [...] is the position that each bad stretch of the data begins at
    told.json         what a straight run is told, in which nothing goes wrong: which batches to skip, what to step over, and where to stop
    raise-RANK        an exception with these words is raised, once; where they begin with `memory`, a MemoryError
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
SPOIL, BAD, TOLD, RAISE, FULL, HANGS = "spoil", "bad.json", "told.json", "raise", "full", "hangs"
SHARD = "shard"
FACTORS = {"nan": float("nan"), "spike": 50.0, SHARD: float("nan")}
"""What the loss of a bad batch is multiplied by."""
STRETCH_STEPS = 8
"""How many batches a bad shard makes."""

_WRITER = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r}); from tests.chaos.planted import write; write()"
"""What Python runs in the writer's place: the writer, on a disk that the harness fills and hangs."""


def _folder() -> Path:
    return Path(os.environ[FOLDER])


def plant() -> None:
    """Called in each rank, before its model is built."""
    from trainer import files, loop
    from trainer.checkpoint.save import writer_client
    from trainer.run import begin
    from trainer.safety.requests import Requests

    rank = int(os.environ.get("RANK", "0"))
    if (told := read(TOLD)) is not None:
        loop.step_if_finite = _skipping(loop.step_if_finite, told["skip"])
        Requests.look = _stopping(Requests.look, told["stop_at"])
        loop.accumulate_gradients = _counting(loop.accumulate_gradients)
        begin.learn_rollbacks = _stepping_over(begin.learn_rollbacks, told["step_over"])
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


def _stepping_over(real, stretches):
    """None of the data that one is told to step over, from the beginning on."""

    def learn(run, resumed_step):
        real(run, resumed_step)
        run.loader.stepped_over = tuple(map(tuple, stretches))

    return learn


def _stopping(real, stop_at):
    def look(self, step, *arguments):
        real(self, step, *arguments)
        if step == stop_at:
            self._stop("it was told to")

    return look


def _spoiled(real, rank):
    """Losses of bad batches, on the last rank alone, are not finite or large, whenever they are computed; and what is to be raised is."""
    is_last = rank == int(os.environ.get("WORLD_SIZE", "1")) - 1
    factors: dict[str, float] = {}

    def accumulate(run, batch):
        _raise(rank)
        if is_last and batch.digest not in factors and (factor := _factor(run.progress.step + 1, batch)):
            factors[batch.digest] = factor
        if batch.digest not in factors:
            return real(run, batch)
        hook = run.model.register_forward_hook(lambda _model, _given, loss: loss * factors[batch.digest])
        try:
            return real(run, batch)
        finally:
            hook.remove()

    return accumulate


def _factor(step: int, batch: Any) -> float | None:
    """What the loss of this step's batch is multiplied by; a batch that becomes bad now is noted before it is computed."""
    bad, wanted, position = read(BAD) or {}, read(SPOIL), batch.first_sequence
    if wanted and step > wanted["after"]:
        kind = wanted["kind"]
        bad.setdefault(kind, []).append(position if kind == SHARD else step)
        write_whole(BAD, bad)
        (_folder() / SPOIL).unlink()
    if any(0 <= position - begin < STRETCH_STEPS * batch.num_sequences for begin in bad.get(SHARD, [])):
        return FACTORS[SHARD]
    return next((FACTORS[kind] for kind, taken in bad.items() if kind != SHARD and step in taken), None)


def read(name: str, folder: Path | None = None) -> Any:
    """What a file of the harness says; None where there is none."""
    try:
        return json.loads(((folder or _folder()) / name).read_text())
    except FileNotFoundError:
        return None


def write_whole(name: str, content: Any, folder: Path | None = None) -> None:
    """Writes it so that nobody sees half of it."""
    path = (folder or _folder()) / name
    path.with_name(f".{name}").write_text(json.dumps(content))
    path.with_name(f".{name}").rename(path)


def _raise(rank: int) -> None:
    if words := read(f"{RAISE}-{rank}"):
        (_folder() / f"{RAISE}-{rank}").unlink()
        raise MemoryError(words) if words.startswith("memory") else RuntimeError(words)


def _on_a_bad_disk(real):
    def write_all(*arguments: Any) -> None:
        while (_folder() / HANGS).exists():
            time.sleep(0.02)
        if (_folder() / FULL).exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*arguments)

    return write_all
