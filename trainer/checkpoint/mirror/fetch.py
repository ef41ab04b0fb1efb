"""Checkpoints brought back from a mirror: what is there, and one of them, verified, among a run's own again."""

import time
from collections.abc import Collection
from datetime import datetime
from pathlib import Path

from trainer.checkpoint.format.manifest import Manifest, folder_name
from trainer.checkpoint.format.retention import best_first
from trainer.checkpoint.format.store import CheckpointStore
from trainer.checkpoint.mirror.places import open_place
from trainer.checkpoint.mirror.transfer import fetch_checkpoint, look_at
from trainer.checkpoint.mirror.worker import mirror_settings
from trainer.checkpoint.resume.diverged import contents_set_aside
from trainer.checkpoint.resume.lock import lock_now
from trainer.config.schema import Config
from trainer.errors import CheckpointError
from trainer.journal import events_from
from trainer.text import age, count, duration, size, table


def place_of(config: Config) -> str:
    """Where a run's own copies are. raises CheckpointError when it makes none"""
    place = mirror_settings(config.checkpoint, config.name)
    if place is None:
        raise CheckpointError(
            f"the run {config.name} has no mirror of its own (checkpoint.mirror is empty); name the folder or URL that holds its step-*"
        )
    return place.where


def offered(where: str) -> str:
    """The checkpoints of one run on a mirror as a table, newest first, and those there that cannot be read. raises CheckpointError"""
    found, unreadable = _found(where)
    rows = [("step", "age", "loss", "val loss", "tokens", "size"), *map(_row, found)]
    total = size(sum(manifest.num_bytes for manifest in found))
    return "\n".join([f"{where}  ({len(found)}, {total})", table(rows), *unreadable.values()])


def fetch(where: str, wanted: str, folder: Path, run_folder: Path | None = None) -> str:
    """Brings the checkpoint that `wanted` names (a step, latest, best) to `folder`/step-*; says where it is and what was verified.

    run_folder  of the run whose copies these are, where it is there: what it set aside as diverged is neither latest nor best
    raises      CheckpointError when it is not there, not sound, or nothing can be put there; no half of it is left behind
    """
    diverged = contents_set_aside(events_from(run_folder, "set_aside")) if run_folder else set()
    chosen, passed_over = _choose(where, wanted, diverged)
    started = time.monotonic()
    try:
        held = lock_now(folder, "stop it, or give another folder: --to")
    except OSError as error:
        raise CheckpointError(
            f"{folder} cannot be written ({error.strerror}); fix that, or give another folder: --to"
        ) from None
    with held:
        fetched = fetch_checkpoint(where, folder, chosen)
    num_bytes = CheckpointStore(folder).entry(fetched).described().num_bytes
    whole = f"{fetched}: {size(num_bytes)} fetched, every byte read back and sound, in {duration(time.monotonic() - started)}"
    return "\n".join([*passed_over, whole])


def _found(where: str) -> tuple[list[Manifest], dict[int, str]]:
    """What is there, newest first, and by its step why each of the others cannot be read. raises CheckpointError when there is nothing"""
    found, unreadable = look_at(where)
    if not found and not unreadable:
        runs = sorted(open_place(where).folders())
        known = f"it holds the folders {', '.join(runs)}: name one of them"
        there = known if runs else "name a run of runs/, or the folder that holds its step-*"
        raise CheckpointError(f"there are no checkpoints of a run in {where}; {there}")
    return found, unreadable


def _choose(where: str, wanted: str, diverged: Collection[str]) -> tuple[int, list[str]]:
    """The step that is meant, and in words what is passed over for it: copies that cannot be read, and those of what has diverged."""
    found, unreadable = _found(where)
    if wanted in ("latest", "best"):
        sure = [m for m in found if m.content_digest not in diverged]
        chosen = next(iter(sure if wanted == "latest" else best_first(sure)), None)
        why_not = "it was set aside as diverged; who wants it names its step"
        over = {**unreadable, **{m.step: why_not for m in found if m.content_digest in diverged}}
        least = -1 if chosen is None or wanted == "best" else chosen.step
        steps_over = [step for step in sorted(over, reverse=True) if step > least]
        words = [f"{folder_name(step)} is passed over: {over[step]}" for step in steps_over]
    else:
        chosen, words = next((m for m in found if str(m.step) == wanted.lstrip("0")), None), []
        if wanted.isdecimal() and int(wanted) in unreadable:
            words = [unreadable[int(wanted)]]
    if chosen is None:
        steps = ", ".join(str(manifest.step) for manifest in found) or "none that can be read"
        told = f" ({'; '.join(words)})" if words else ""
        raise CheckpointError(
            f"there is no checkpoint {wanted} in {where}{told}; give latest, best (where there is a validation loss), or one of the steps: {steps}"
        )
    return chosen.step, words


def _row(manifest: Manifest) -> tuple[str, ...]:
    seconds = time.time() - datetime.fromisoformat(manifest.created).timestamp()
    losses = ("-" if manifest.loss is None else f"{manifest.loss:.4f}", manifest.val_loss_words or "-")
    return str(manifest.step), age(seconds), *losses, count(manifest.tokens), size(manifest.num_bytes)
