"""Checkpoints brought back from a second place: what is there, and one of them, verified, among a run's own again."""

import time
from datetime import datetime
from pathlib import Path

from trainer import locks
from trainer.checkpoint.copier import second_place_of
from trainer.checkpoint.manifest import Manifest
from trainer.checkpoint.retention import best_first
from trainer.checkpoint.second_place import checkpoints_at, fetch_checkpoint, open_place
from trainer.checkpoint.store import CheckpointStore
from trainer.config.schema import Config
from trainer.errors import CheckpointError
from trainer.text import age, count, duration, size, table


def place_of(config: Config) -> str:
    """Where a run's own copies are. raises CheckpointError when it makes none"""
    place = second_place_of(config.checkpoint, config.name)
    if place is None:
        raise CheckpointError(
            f"the run {config.name} has no second place of its own (checkpoint.second_place is empty); name the folder or URL that holds its "
            "step-*"
        )
    return str(place["where"])


def offered(where: str) -> str:
    """The checkpoints of one run in a second place as a table, newest first. raises CheckpointError when there are none"""
    found = _found(where)
    rows = [("step", "age", "loss", "val loss", "tokens", "size"), *map(_row, found)]
    total = size(sum(manifest.num_bytes for manifest in found))
    return f"{where}  ({len(found)}, {total})\n{table(rows)}"


def fetch(where: str, wanted: str, folder: Path) -> str:
    """Brings the checkpoint that `wanted` names (a step, latest, best) to `folder`/step-*; says where it is and what was verified.

    raises  CheckpointError when it is not there, not sound, or nothing can be put there; no half of it is left behind
    """
    step, started = _step_of(where, _found(where), wanted), time.monotonic()
    try:
        held = locks.take(folder / ".lock")
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written ({error.strerror}); mend that, or give another folder: --to") from None
    if held is None:
        raise CheckpointError(f"another process writes checkpoints to {folder} right now; stop it, or give another folder: --to")
    with held:
        fetched = fetch_checkpoint(where, folder, step)
    num_bytes = CheckpointStore(folder).entry(fetched).manifest.num_bytes
    return f"{fetched}: {size(num_bytes)} fetched, every byte read back and sound, in {duration(time.monotonic() - started)}"


def _found(where: str) -> list[Manifest]:
    found = checkpoints_at(where)
    if not found:
        runs = sorted(open_place(where).folders())
        known = f"it holds the folders {', '.join(runs)}: name one of them"
        there = known if runs else "name a run of runs/, or the folder that holds its step-*"
        raise CheckpointError(f"there are no checkpoints of a run in {where}; {there}")
    return found


def _step_of(where: str, found: list[Manifest], wanted: str) -> int:
    chosen = {"latest": found, "best": best_first(found)}.get(wanted)
    if chosen is None:
        chosen = [manifest for manifest in found if str(manifest.step) == wanted.lstrip("0")]
    if not chosen:
        steps = ", ".join(str(manifest.step) for manifest in found)
        raise CheckpointError(f"there is no checkpoint {wanted} in {where}; give latest, best (where there is a validation loss), or one of the steps: {steps}")
    return chosen[0].step


def _row(manifest: Manifest) -> tuple[str, ...]:
    seconds = time.time() - datetime.fromisoformat(manifest.created).timestamp()
    losses = ("-" if manifest.loss is None else f"{manifest.loss:.4f}", manifest.val_loss_words or "-")
    return str(manifest.step), age(seconds), *losses, count(manifest.tokens), size(manifest.num_bytes)
