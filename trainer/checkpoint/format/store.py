"""The folder of a run's checkpoints.

    checkpoints/NAME/step-00001500/   complete: every file on the disk and in the manifest, then one rename
    checkpoints/NAME/.staging-*       being written; swept at the next start
    checkpoints/NAME/.removing-*      what pruning takes away, until it is gone
    checkpoints/NAME/.damaged-*       refused by a resume, kept for whoever wants to know why
    checkpoints/NAME/.diverged-*      from after its run went wrong, in a launch that ended as diverged
    checkpoints/NAME/.abandoned-*     newer than the checkpoint a resume went back to
    checkpoints/NAME/.verified.jsonl  what the last verifications found

There is no index and no pointer that could disagree: the list is what is on disk. The links `latest` and `best` are for people.
"""

import logging
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainer import files
from trainer.checkpoint.format import manifest as manifests
from trainer.checkpoint.format.manifest import MANIFEST, Manifest, folder_name
from trainer.checkpoint.format.retention import Holding, Names, Policy, Removal, best_first, removals, shortage
from trainer.checkpoint.format.verified import found_damaged, last_verifications
from trainer.checkpoint.format.verified_copy import DiskFiles, copy_verified
from trainer.errors import CheckpointError

log = logging.getLogger(__name__)

ASIDE = re.compile(r"\.(damaged|diverged|abandoned)-step-([0-9]+)(?:-([0-9]+))?")
"""A folder that was set aside: why, its step, and its number among those of this step."""
REMOVING = ".removing-"


@dataclass(frozen=True)
class Entry:
    """One committed folder: its manifest, or what is wrong with it."""

    path: Path
    step: int | None
    """The step in its name; of a copy under another name the manifest's, None when that cannot be read either."""
    manifest: Manifest | None
    problem: str | None

    @property
    def number(self) -> int:
        """Its step, of one that has its step's name."""
        assert self.step is not None, "this is a copy under another name"
        return self.step

    @property
    def is_whole(self) -> bool:
        """Whether its structure is right; whether its bytes are, only `verify` can tell."""
        return self.manifest is not None and not self.problem

    def described(self) -> Manifest:
        """Its manifest, for whoever knows that it can be read."""
        assert self.manifest is not None, "its manifest cannot be read"
        return self.manifest


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
        return [entry.described() for entry in self.entries() if entry.is_whole]

    def path(self, step: int) -> Path:
        return self.folder / folder_name(step)

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
        """Copies a sound checkpoint from elsewhere into this folder, under the manifest given; returns the copy, which is not pinned."""
        staging = self.begin(manifest.step)
        copy_verified(manifest, DiskFiles(path), DiskFiles(staging))
        return self.commit(staging, replace(manifest, pinned=False))

    def set_aside_folders(self) -> list[Path]:
        """The folders that were set aside, the least worth keeping first: damaged, diverged, abandoned, each from the oldest."""
        found = [(match, path) for path in self.folder.glob(".*-step-*") if (match := ASIDE.fullmatch(path.name))]
        worth = ("damaged", "diverged", "abandoned")
        found.sort(key=lambda pair: (worth.index(pair[0][1]), int(pair[0][2]), int(pair[0][3] or 1)))
        return [path for _, path in found if path.is_dir()]

    def holding(self) -> Holding:
        """What the folder holds. A checkpoint that a verification found damaged counts as little as one that is not whole."""
        verifications = last_verifications(self.folder)
        sound = [manifest for manifest in self.sound_manifests() if not found_damaged(manifest, verifications)]
        checkpoints = {manifest.step: folder_bytes(self.path(manifest.step)) for manifest in sound}
        aside = {path.name: folder_bytes(path) for path in self.set_aside_folders() if not pin_of(path)}
        other = self.num_bytes() - sum(checkpoints.values()) - sum(aside.values())
        return Holding(sound, checkpoints, aside, max(0, other))

    def removals(self, policy: Policy, *, in_flight_bytes: int | None = None, held: Names = ()) -> list[Removal]:
        """What pruning would remove, in this order, and why; room is left for one more of `in_flight_bytes`, by default the newest's."""
        holding = self.holding()
        return removals(holding, policy, in_flight_bytes=_in_flight(holding, in_flight_bytes), held=held)

    def shortage(self, policy: Policy, *, in_flight_bytes: int | None = None, held: Names = ()) -> str | None:
        """Why `max_disk_bytes` cannot hold even what is never removed and one more, in a paragraph; None when it can."""
        holding = self.holding()
        return shortage(holding, policy, in_flight_bytes=_in_flight(holding, in_flight_bytes), held=held)

    def prune(self, policy: Policy, *, in_flight_bytes: int | None = None, held: Names = ()) -> list[tuple[str, str]]:
        """Removes what the policy gives up, the least valuable first; called after a commit. Returns the names that went, and why.

        A damaged checkpoint is left alone, and so is one that is pinned while this goes on. See `removals` for the arguments.
        """
        for leftover in self.folder.glob(f"{REMOVING}*"):
            self._finish_removal(leftover)
        doomed = self.removals(policy, in_flight_bytes=in_flight_bytes, held=held)
        return [(removal.name, removal.reason) for removal in doomed if self._remove(self.folder / removal.name)]

    def _remove(self, path: Path) -> bool:
        doomed = path.with_name(f"{REMOVING}{path.name}")
        if doomed.exists() and not self._finish_removal(doomed):
            return False
        files.move_folder(path, doomed)
        return self._finish_removal(doomed)

    def _finish_removal(self, doomed: Path) -> bool:
        """Removes a folder that lost its name, and gives the name back to one that was pinned just before; returns whether it went.

        Nobody can pin it any more: a pin goes through the name that it had.
        """
        path = doomed.with_name(doomed.name.removeprefix(REMOVING))
        if pin_of(doomed) and not path.exists():
            files.move_folder(doomed, path)
            return False
        files.remove_folder(doomed)
        return True

    def point_links(self) -> None:
        """Points `latest` and `best`, which people follow and nothing reads; a folder of that name stays, a link that leads nowhere goes."""
        sound = self.sound_manifests()
        for name, chosen in (("latest", sound[:1]), ("best", best_first(sound)[:1])):
            link = self.folder / name
            if chosen and (link.is_symlink() or not link.exists()):
                files.point_symlink(link, self.path(chosen[0].step).name)
            elif not chosen and link.is_symlink():
                link.unlink(missing_ok=True)

    def sweep(self) -> list[str]:
        """Removes what earlier starts left half written or half removed; returns the names."""
        leftovers = [path for pattern in (".staging-*", ".*.partial-*") for path in self.folder.glob(pattern)]
        for path in leftovers:
            files.remove_folder(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        leftovers += [path for path in self.folder.glob(f"{REMOVING}*") if self._finish_removal(path)]
        return sorted(path.name for path in leftovers)

    def num_bytes(self) -> int:
        """Bytes of everything in the folder, set-aside folders included."""
        return folder_bytes(self.folder)


def best_entries(entries: Sequence[Entry]) -> list[Entry]:
    """Those with a validation loss, lowest first; by their manifests, since a folder may have another step's name, which is a damage."""
    of_manifest = {id(entry.manifest): entry for entry in entries}
    return [of_manifest[id(best)] for best in best_first([entry.manifest for entry in entries if entry.manifest])]


def folder_bytes(path: Path) -> int:
    """Bytes of the files in a folder; one that is removed meanwhile counts nothing."""
    total = 0
    for parent, _, names in os.walk(path):
        for name in names:
            with suppress(OSError):
                file = Path(parent, name)
                total += 0 if file.is_symlink() else file.stat().st_size
    return total


def _in_flight(holding: Holding, given: int | None) -> int:
    """Bytes of the next checkpoint: as given, or those of the newest."""
    if given is not None:
        return given
    return holding.checkpoint_bytes[max(holding.checkpoint_bytes)] if holding.checkpoint_bytes else 0


def pin_of(path: Path) -> bool | None:
    """Whether a checkpoint's manifest says that it is pinned; None where there is none to read."""
    try:
        return manifests.read_manifest(path).pinned
    except CheckpointError:
        return None


def structural_problems(path: Path, manifest: Manifest) -> list[str]:
    """What a look at names and sizes shows to be wrong."""
    problems = []
    if _step_of(path) not in (manifest.step, None):
        problems.append(f"its manifest is of step {manifest.step}, not {_step_of(path)}")
    try:
        for name, entry in manifest.files.items():
            file = path / name
            if not file.is_file():
                problems.append(f"{name} is missing")
            elif file.stat().st_size != entry["bytes"]:
                problems.append(f"{name} has {file.stat().st_size:,} bytes, expected {entry['bytes']:,}")
        present = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    except OSError as error:
        return [f"{path.name} cannot be looked at: {error.strerror}"]
    return problems + [f"{name} does not belong to it" for name in sorted(present - {*manifest.files, MANIFEST})]


def verify(path: Path) -> list[str]:
    """Reads every byte of a checkpoint; returns what is wrong with it, nothing when it is sound."""
    try:
        manifest = manifests.read_manifest(path)
    except CheckpointError as error:
        return [str(error)]
    damages = [_damage(path / name, name, entry) for name, entry in manifest.files.items()]
    return structural_problems(path, manifest) + [damage for damage in damages if damage]


def _damage(file: Path, name: str, entry: dict[str, Any]) -> str | None:
    """What reading a file shows to be wrong; a missing one, or one of another size, was told before."""
    try:
        is_whole = file.is_file() and file.stat().st_size == entry["bytes"]
        if is_whole and manifests.digest_file(file) != entry["xxh3_128"]:
            return f"{name} is damaged: its bytes do not match their digest"
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"
    return None


def _step_of(path: Path) -> int | None:
    """The step in a folder's name; None when it has none (a copy under another name)."""
    match = re.fullmatch(r"step-([0-9]+)", path.name)
    return int(match[1]) if match else None
