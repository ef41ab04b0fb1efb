"""Files of the model that a run began from, in runs/NAME/source and in each of its checkpoints: an export hands them on without the source."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer import files
from trainer.checkpoint.format.manifest import digest_file

FOLDER = "source"


def carried(folder: Path) -> list[str]:
    """What a run's folder or a checkpoint carries, by its paths in the folder `source` there."""
    place = folder / FOLDER
    return sorted(path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file())


def take_along(folder: Path, names: Sequence[str], run_folder: Path) -> None:
    """Makes these files of a folder what the run carries, in place of what it carried before. raises OSError"""
    staging, place = run_folder / f".{FOLDER}-new", run_folder / FOLDER
    if staging.exists():
        files.remove_folder(staging)
    if names:
        _copy(folder, names, staging)
    if place.exists():
        files.remove_folder(place)
    if names:
        files.commit_folder(staging, place)


def carry(run_folder: Path, checkpoint: Path) -> dict[str, dict[str, Any]]:
    """Copies what the run carries into a checkpoint that is being written; returns sizes and digests, as a manifest has them. raises OSError"""
    names = carried(run_folder)
    if names:
        _copy(run_folder / FOLDER, names, checkpoint / FOLDER)
    paths = {f"{FOLDER}/{name}": checkpoint / FOLDER / name for name in names}
    return {name: {"bytes": path.stat().st_size, "xxh3_128": digest_file(path)} for name, path in paths.items()}


def carried_bytes(run_folder: Path) -> int:
    """How much that is."""
    return sum((run_folder / FOLDER / name).stat().st_size for name in carried(run_folder))


def _copy(folder: Path, names: Sequence[str], target: Path) -> None:
    target.mkdir(parents=True)
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, target / name)
