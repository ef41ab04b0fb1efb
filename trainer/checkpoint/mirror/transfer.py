"""Checkpoints copied to a place and brought back, verified.

A copy goes: sweep what an interrupted one left, copy every file verified, the manifest, then remove what is too many. Whatever goes
wrong is a CheckpointError, which the caller counts and logs: the run is safe without.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from trainer.checkpoint.format.manifest import MANIFEST, Manifest, folder_name, parse_manifest
from trainer.checkpoint.format.store import CheckpointStore
from trainer.checkpoint.format.verified_copy import DiskFiles, Pace, copy_verified
from trainer.checkpoint.mirror.places import LocalPlace, Place, open_place, place_errors
from trainer.errors import CheckpointError


@dataclass(frozen=True)
class Copied:
    """What a copy did."""

    step: int
    where: str
    num_bytes: int
    """Bytes written there; 0 when the same checkpoint was there already."""
    seconds: float
    removed: list[int]
    """Steps that were too many there."""


def copy_checkpoint(checkpoint: Path, where: str, *, keep: int, pace: Pace | None = None) -> Copied:
    """Copies one committed checkpoint to a mirror, verified there, and keeps the newest `keep` of it.

    pace    bandwidth; both the writing and the reading back count
    raises  CheckpointError when it could not be done; what an interrupted copy leaves is not there, and the next one removes it

    Checkpoints there that are newer than this one belong to a branch that was left, and are the first to go.
    """
    started = time.monotonic()
    place = open_place(where)
    with place_errors(f"{checkpoint} could not be copied to {where}"):
        text = (checkpoint / MANIFEST).read_bytes()
        manifest = parse_manifest(text, str(checkpoint / MANIFEST))
        _refuse_home(place, checkpoint)
        place.sweep()
        num_bytes = 0
        if not _is_there(place, manifest.step, text):
            folder = place.begin(manifest.step)
            copy_verified(manifest, DiskFiles(checkpoint), place, into=folder, pace=pace)
            place.commit(folder, manifest.step, text)
            num_bytes = manifest.num_bytes + len(text)
        removed = too_many(place.steps(), manifest.step, keep)
        for step in removed:
            place.remove(step)
    return Copied(manifest.step, where, num_bytes, time.monotonic() - started, removed)


def _refuse_home(place: Place, checkpoint: Path) -> None:
    """The folder of the run's own checkpoints is no mirror: sweeping it would remove what is being written."""
    if isinstance(place, LocalPlace) and Path(place.where).resolve() == checkpoint.parent.resolve():
        raise CheckpointError(
            f"checkpoint.mirror leads to {checkpoint.parent}, where the checkpoints of this run are already; give another disk's "
            "folder, or a URL"
        )


def too_many(steps: list[int], newest: int, keep: int) -> list[int]:
    """Which steps go when `keep` stay and `newest` was just copied: first those of a branch that was left, then the oldest."""
    kept = sorted((step for step in steps if step <= newest), reverse=True)
    left = sorted(step for step in steps if step > newest)
    return sorted((kept + left)[max(keep, 1) :])


def look_at(where: str) -> tuple[list[Manifest], dict[int, str]]:
    """The manifests of the checkpoints on a mirror, newest first, and by its step why each of the others cannot be read."""
    place = open_place(where)
    found, unreadable = [], {}
    with place_errors(f"the checkpoints in {where} cannot be listed"):
        for step in place.steps():
            try:
                found.append(_manifest_at(place, step))
            except CheckpointError as error:
                unreadable[step] = str(error)
    return found, unreadable


def fetch_checkpoint(where: str, into: Path, step: int | None = None, *, pace: Pace | None = None) -> Path:
    """Brings a checkpoint back from a mirror, verified: the newest, or that of a step; returns its folder.

    The folder is `into`/step-*, for resume_from_checkpoint=PATH. raises CheckpointError
    """
    place, store = open_place(where), CheckpointStore(into)
    with place_errors(f"no checkpoint could be fetched from {where}"):
        steps = place.steps()
        if not steps or (step is not None and step not in steps):
            there = f"it holds the steps {', '.join(map(str, steps))}" if steps else "it holds none"
            which = "" if step is None else f" of step {step}"
            raise CheckpointError(
                f"there is no checkpoint{which} in {where}; {there}: give one of them, or another place"
            )
        wanted = steps[0] if step is None else step
        manifest, text = _manifest_at(place, wanted), _text_at(place, wanted)
        if store.path(wanted).exists():
            raise CheckpointError(f"{store.path(wanted)} exists already, and is not replaced; give another folder")
        home = LocalPlace(into)
        folder = home.begin(wanted)
        copy_verified(manifest, place, home, folder=folder_name(wanted), into=folder, pace=pace)
        home.commit(folder, wanted, text)
    return store.path(wanted)


def _is_there(place: Place, step: int, text: bytes) -> bool:
    """Whether this very checkpoint was committed there before; its bytes were read back then."""
    return step in place.steps() and _text_at(place, step) == text


def _manifest_at(place: Place, step: int) -> Manifest:
    return parse_manifest(_text_at(place, step), f"{place.where}/{folder_name(step)}/{MANIFEST}")


def _text_at(place: Place, step: int) -> bytes:
    with place.read(f"{folder_name(step)}/{MANIFEST}") as file:
        return file.read()
