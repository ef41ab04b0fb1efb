"""The folder of a run's checkpoints.

    checkpoints/NAME/step-00001500/   complete: every file on the disk and in the manifest, then one rename
    checkpoints/NAME/.staging-*       being written; swept at the next start
    checkpoints/NAME/.damaged-*       refused by a resume, kept for whoever wants to know why
    checkpoints/NAME/.abandoned-*     newer than the checkpoint a resume went back to

There is no index and no pointer that could disagree: the list is what is on disk. The links `latest` and `best` are for people.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

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
    step: int
    manifest: Manifest | None
    problem: str | None


class CheckpointStore:
    """The checkpoints of one run, on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def entries(self) -> list[Entry]:
        """Every committed checkpoint, newest first. Reads manifests and file sizes, not the files."""
        found = [(_step_of(path), path) for path in self.folder.glob("step-*") if path.is_dir()]
        return [self.entry(path, step) for step, path in sorted(found, reverse=True)]

    def entry(self, path: Path, step: int | None = None) -> Entry:
        """One checkpoint by its folder, with a check of its structure: manifest, names and sizes."""
        step = _step_of(path) if step is None else step
        try:
            manifest = manifests.read_manifest(path)
        except CheckpointError as error:
            return Entry(path, step, None, str(error))
        problems = structural_problems(path, manifest)
        if manifest.step != step:
            problems.append(f"its manifest is of step {manifest.step}, not {step}")
        return Entry(path, step, manifest, "; ".join(problems) or None)

    def sound_manifests(self) -> list[Manifest]:
        """Manifests of all checkpoints whose structure is whole."""
        return [entry.manifest for entry in self.entries() if entry.manifest and not entry.problem]

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def begin(self, step: int) -> Path:
        """An empty folder to write a checkpoint into; it is not one until `commit`."""
        staging = self.folder / f".staging-{step:08d}"
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

    def prune(self, policy: Policy, spare: Path | None = None) -> list[Path]:
        """Removes what no tier keeps, oldest first; damaged folders and `spare` are left alone. Returns what went."""
        kept = tiers(self.sound_manifests(), policy)
        doomed = [self.path(step) for step in sorted(kept) if not kept[step] and self.path(step) != spare]
        for path in doomed:
            files.remove_folder(path)
        return doomed

    def point_links(self) -> None:
        """Points the links `latest` and `best`, which people follow and nothing reads."""
        sound = self.sound_manifests()
        if sound:
            files.point_symlink(self.folder / "latest", self.path(sound[0].step).name)
        if best := best_first(sound):
            files.point_symlink(self.folder / "best", self.path(best[0].step).name)

    def sweep(self) -> list[str]:
        """Removes what earlier starts left half written or half removed; returns the names."""
        swept = []
        for pattern in (".staging-*", ".removing-*"):
            for path in sorted(self.folder.glob(pattern)):
                files.remove_folder(path)
                swept.append(path.name)
        return swept

    def num_bytes(self) -> int:
        """Bytes of everything in the folder, set-aside folders included."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file() and not path.is_symlink())


def structural_problems(path: Path, manifest: Manifest) -> list[str]:
    """What a look at names and sizes shows to be wrong."""
    problems = []
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
    problems = structural_problems(path, manifest)
    if _step_of(path) not in (manifest.step, None):
        problems.append(f"its manifest is of step {manifest.step}, not {_step_of(path)}")
    for name, entry in manifest.files.items():
        file = path / name
        if file.is_file() and file.stat().st_size == entry["bytes"]:
            try:
                damaged = manifests.digest_file(file) != entry["xxh3_128"]
            except OSError as error:
                problems.append(f"{name} cannot be read: {error.strerror}")
                continue
            if damaged:
                problems.append(f"{name} is damaged: its bytes do not match their digest")
    return problems


def _step_of(path: Path) -> int | None:
    """The step in a folder's name; None when it has none (a copy under another name)."""
    number = path.name.removeprefix("step-")
    return int(number) if path.name.startswith("step-") and number.isdigit() else None
