"""Files that a run carries, in runs/NAME and in each of its checkpoints, so that generating and exporting need nothing but the checkpoint:
`source` has those of the model that the run began from, `tokenizer` the original files of a Hugging Face tokenizer."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainer import files
from trainer.checkpoint.format.manifest import Manifest, digest_file

FOLDER = "source"
TOKENIZER = "tokenizer"
_FOLDERS = (FOLDER, TOKENIZER)


def carried(folder: Path, kind: str = FOLDER) -> list[str]:
    """What a run's folder or a checkpoint carries, by its paths in the folder `kind` there."""
    place = folder / kind
    return sorted(path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file())


def take_along(folder: Path, names: Sequence[str], run_folder: Path) -> None:
    """Makes these files of a folder the `source` that the run carries, in place of what it carried before. raises OSError"""
    with replaced(run_folder, FOLDER) as staging:
        _copy(folder, names, staging)


@contextmanager
def replaced(run_folder: Path, kind: str) -> Iterator[Path]:
    """An empty folder for what the run carries from here on, in place of what it carried before. raises OSError"""
    staging, place = run_folder / f".{kind}-new", run_folder / kind
    if staging.exists():
        files.remove_folder(staging)
    staging.mkdir()
    yield staging
    if place.exists():
        files.remove_folder(place)
    if any(staging.iterdir()):
        files.commit_folder(staging, place)
    else:
        staging.rmdir()


def carry(run_folder: Path, checkpoint: Path) -> dict[str, dict[str, Any]]:
    """Copies what the run carries into a checkpoint that is being written; returns sizes and digests, as a manifest has them. raises OSError"""
    for kind in _FOLDERS:
        if names := carried(run_folder, kind):
            (checkpoint / kind).mkdir(parents=True)
            _copy(run_folder / kind, names, checkpoint / kind)
    paths = {f"{kind}/{name}": checkpoint / kind / name for kind in _FOLDERS for name in carried(checkpoint, kind)}
    return {name: {"bytes": path.stat().st_size, "xxh3_128": digest_file(path)} for name, path in paths.items()}


def carried_bytes(run_folder: Path) -> int:
    """How much that is."""
    return sum((run_folder / kind / name).stat().st_size for kind in _FOLDERS for name in carried(run_folder, kind))


def tokenizer_name(checkpoint: Path, manifest: Manifest) -> str | None:
    """What the tokenizer of a checkpoint is opened by: its own copy where it carries one; None where there is none."""
    return str(checkpoint / TOKENIZER) if carried(checkpoint, TOKENIZER) else manifest.tokenizer


def _copy(folder: Path, names: Sequence[str], target: Path) -> None:
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, target / name)
