"""The folder of a run's checkpoints.

    checkpoints/NAME/step-00001500/   complete: every file on the disk and in the manifest, then one rename
    checkpoints/NAME/.staging-*       being written; swept at the next start
    checkpoints/NAME/.damaged-*       refused by a resume, kept for whoever wants to know why
    checkpoints/NAME/.abandoned-*     newer than the checkpoint a resume went back to

There is no index and no pointer that could disagree: the list is what is on disk. The links `latest` and `best` are for people.
"""

import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer import files
from trainer.checkpoint import manifest as manifests
from trainer.checkpoint.manifest import MANIFEST, Manifest
from trainer.checkpoint.retention import Policy, best_first, tiers
from trainer.errors import CheckpointError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One committed folder: its manifest, or what is wrong with it."""

    path: Path
    step: int | None
    """The step in its name; of a copy under another name the manifest's, None when that cannot be read either."""
    manifest: Manifest | None
    problem: str | None


class CheckpointStore:
    """The checkpoints of one run, on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def entries(self) -> list[Entry]:
        """Every committed checkpoint, newest first. Reads manifests and file sizes, not the files."""
        steps = [_step_of(path) for path in self.folder.glob("step-*") if path.is_dir()]
        own = {step for step in steps if step is not None and self.path(step).is_dir()}  # a copy has another name
        return [self.entry(self.path(step)) for step in sorted(own, reverse=True)]

    def entry(self, path: Path) -> Entry:
        """One checkpoint by its folder, with a check of its structure: manifest, names and sizes."""
        step = _step_of(path)
        try:
            manifest = manifests.read_manifest(path)
        except CheckpointError as error:
            return Entry(path, step, None, str(error))
        problems = structural_problems(path, manifest)
        return Entry(path, manifest.step if step is None else step, manifest, "; ".join(problems) or None)

    def sound_manifests(self) -> list[Manifest]:
        """Manifests of all checkpoints whose structure is whole."""
        return [entry.manifest for entry in self.entries() if entry.manifest and not entry.problem]

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def staging(self, step: int) -> Path:
        """Where a checkpoint of this step is written until it is committed."""
        return self.folder / f".staging-{step:08d}"

    def begin(self, step: int) -> Path:
        """An empty folder to write a checkpoint into; it is not one until `commit`."""
        staging = self.staging(step)
        if staging.exists():
            files.remove_folder(staging)
        staging.mkdir(parents=True)
        return staging

    def commit(self, staging: Path, manifest: Manifest) -> Path:
        """Writes the manifest last, makes everything durable, and renames: from then on the checkpoint exists.

        A sound checkpoint of the same step is never replaced: the new folder is dropped and the old one returned.
        """
        final = self.path(manifest.step)
        if final.exists():
            if not verify(final):
                files.remove_folder(staging)
                return final
            log.warning("%s is damaged: it is set aside as %s", final.name, files.set_aside(final, "damaged").name)
        (staging / MANIFEST).write_text(manifests.to_json(manifest), encoding="utf-8")
        files.commit_folder(staging, final)
        return final

    def adopt(self, path: Path, manifest: Manifest) -> Path:
        """Copies a sound checkpoint from elsewhere into this folder, under the manifest given; returns the copy."""
        staging = self.begin(manifest.step)
        for name in manifest.files:
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path / name, staging / name)
        adopted = self.commit(staging, manifest)
        if problems := verify(adopted):
            raise CheckpointError(
                f"the copy of {path} to {adopted} is not sound: {'; '.join(problems)}; is the disk broken?"
            )
        return adopted

    def prune(self, policy: Policy) -> list[Path]:
        """Removes what no tier keeps, oldest first; damaged folders are left alone. Returns what went."""
        kept = tiers(self.sound_manifests(), policy)
        doomed = [self.path(step) for step in sorted(kept) if not kept[step]]
        for path in doomed:
            files.remove_folder(path)
        return doomed

    def point_links(self) -> None:
        """Points the links `latest` and `best`, which people follow and nothing reads; a folder that a copy left there stays."""
        sound = self.sound_manifests()
        targets = {"latest": sound[:1], "best": best_first(sound)[:1]}
        for name, chosen in targets.items():
            link = self.folder / name
            if chosen and (link.is_symlink() or not link.exists()):
                files.point_symlink(link, self.path(chosen[0].step).name)

    def sweep(self) -> list[str]:
        """Removes what earlier starts left half written or half removed; returns the names."""
        leftovers = [
            path for pattern in (".staging-*", ".removing-*", ".*.partial-*") for path in self.folder.glob(pattern)
        ]
        for path in leftovers:
            files.remove_folder(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        return sorted(path.name for path in leftovers)

    def num_bytes(self) -> int:
        """Bytes of everything in the folder, set-aside folders included."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file() and not path.is_symlink())


def structural_problems(path: Path, manifest: Manifest) -> list[str]:
    """What a look at names and sizes shows to be wrong."""
    try:
        return _structural_problems(path, manifest)
    except OSError as error:
        return [f"{path.name} cannot be looked at: {error.strerror}"]


def _structural_problems(path: Path, manifest: Manifest) -> list[str]:
    problems = []
    if _step_of(path) not in (manifest.step, None):
        problems.append(f"its manifest is of step {manifest.step}, not {_step_of(path)}")
    for name, entry in manifest.files.items():
        file = path / name
        if not file.is_file():
            problems.append(f"{name} is missing")
        elif file.stat().st_size != entry["bytes"]:
            problems.append(f"{name} has {file.stat().st_size:,} bytes, expected {entry['bytes']:,}")
    known = {*manifest.files, MANIFEST}
    present = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    problems += [f"{name} does not belong to it" for name in sorted(present - known)]
    return problems


def verify(path: Path) -> list[str]:
    """Reads every byte of a checkpoint; returns what is wrong with it, nothing when it is sound."""
    try:
        manifest = manifests.read_manifest(path)
    except CheckpointError as error:
        return [str(error)]
    return structural_problems(path, manifest) + [
        problem for name, entry in manifest.files.items() if (problem := _damage(path / name, name, entry))
    ]


def _damage(file: Path, name: str, entry: dict[str, Any]) -> str | None:
    """What reading a file shows to be wrong; a missing one, or one of another size, was told before."""
    try:
        if (
            file.is_file()
            and file.stat().st_size == entry["bytes"]
            and manifests.digest_file(file) != entry["xxh3_128"]
        ):
            return f"{name} is damaged: its bytes do not match their digest"
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"
    return None


def _step_of(path: Path) -> int | None:
    """The step in a folder's name; None when it has none (a copy under another name)."""
    match = re.fullmatch(r"step-([0-9]+)", path.name)
    return int(match[1]) if match else None
