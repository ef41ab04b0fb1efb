"""Where to continue from: `latest`, `best`, a step, a folder, or `none`.

`latest` walks from the newest to the oldest, reads every byte, and takes the first sound one; each refusal is told with its
reason. A run that has checkpoints never starts over silently: if none is sound that is an error, and so is `none`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.checkpoint.format.manifest import MANIFEST, Manifest, read_manifest
from trainer.checkpoint.format.store import CheckpointStore, Entry, best_entries, verify
from trainer.checkpoint.resume.crash_loops import all_suspect_text
from trainer.config.folders import command_line, typed
from trainer.errors import CheckpointError
from trainer.text import numbered


@dataclass(frozen=True)
class Resolution:
    """The checkpoint to continue from, or None for a fresh start, and which were passed over and why."""

    path: Path | None
    manifest: Manifest | None
    refused: dict[Path, str] = field(default_factory=dict)
    """Those that are not sound."""
    suspect: dict[Path, str] = field(default_factory=dict)
    """Those that are sound, and from which starts die."""

    def found(self) -> tuple[Path, Manifest]:
        """The checkpoint, for whoever knows that there is one."""
        assert self.path is not None and self.manifest is not None, "this is a fresh start"
        return self.path, self.manifest


Examine = Callable[[Path], list[str]]
"""Says what is wrong with a checkpoint's folder."""


def resolve(
    store: CheckpointStore, wanted: str, examine: Examine = verify, suspects: Mapping[int, str] | None = None
) -> Resolution:
    """Finds the checkpoint that `resume_from_checkpoint` names; CheckpointError when it cannot be had.

    suspects  step -> why `latest` should pass it over; who names a checkpoint gets it
    """
    entries = store.entries()
    if wanted == "none":
        if entries:
            raise CheckpointError(
                f"{store.folder} already holds {numbered(len(entries), 'checkpoint')}, the newest of step {entries[0].step}, and "
                "resume_from_checkpoint is none; give this run another name, or move that folder away, or resume from latest"
            )
        return Resolution(None, None)
    if wanted == "latest":
        return _first_sound(store, entries, examine, suspects or {}) if entries else Resolution(None, None)
    if wanted == "best":
        return _best(store, entries, examine)
    if wanted.isdecimal():
        return _exactly(store.path(int(wanted)), _steps_text(entries, store), examine)
    help_text = f"give latest, best, a step, or the path of a checkpoint's folder; {_steps_text(entries, store)}"
    return _exactly(Path(wanted), help_text, examine)


def check(store: CheckpointStore, wanted: str, max_steps: int, run_folder: Path) -> None:
    """Refuses what a resume would refuse, as far as manifests, names and sizes tell: for before a launch.

    Whether `latest` is sound is left to the resume, which reads every byte and tells which it passes over.
    """
    if wanted == "latest" or gone_on(store, wanted) is not None:
        newest = next(iter(store.sound_manifests()), None)
    else:
        newest = look(store, wanted).manifest
    if newest is not None:
        check_not_beyond(run_folder, newest.step, max_steps)


def look(store: CheckpointStore, wanted: str) -> Resolution:
    """What a resume would find, as far as manifests, names and sizes tell; CheckpointError where it would be refused."""
    return resolve(store, "latest" if gone_on(store, wanted) else wanted, _look)


def check_not_beyond(run_folder: Path, step: int, max_steps: int) -> None:
    """Refuses to end a run before the step at which it stands: that would throw steps away, and call it finished."""
    if step > max_steps:
        raise CheckpointError(
            f"max_steps is {max_steps}, and the run stands at step {step} already; set max_steps to more than {step} to train on, declare it "
            f"finished as it is ({command_line('finish', typed(run_folder))}), or go back to an earlier step with "
            "resume_from_checkpoint=STEP"
        )


def gone_on(store: CheckpointStore, wanted: str) -> Manifest | None:
    """The newest checkpoint of a run that was taken back to `wanted` (a step, a path or best) before and has gone on from there."""
    newest = next(iter(store.sound_manifests()), None)
    is_word = wanted in ("latest", "none")
    return None if is_word or newest is None or newest.origin != wanted else newest


def _look(path: Path) -> list[str]:
    problem = CheckpointStore(path.parent).entry(path).problem
    return [problem] if problem else []


def _first_sound(
    store: CheckpointStore, entries: list[Entry], examine: Examine, suspects: Mapping[int, str]
) -> Resolution:
    refused: dict[Path, str] = {}
    suspect: dict[Path, str] = {}
    for entry in entries:
        problems = [entry.problem] if entry.problem else examine(entry.path)
        if problems:
            refused[entry.path] = "; ".join(problems)
        elif entry.number in suspects:
            suspect[entry.path] = suspects[entry.number]
        else:
            return Resolution(entry.path, entry.manifest, refused, suspect)
    if suspect:
        of_steps = {int(path.name[5:]): reason for path, reason in suspect.items()}
        raise CheckpointError(all_suspect_text(store.folder, of_steps))
    reasons = "; ".join(f"{path.name}: {reason}" for path, reason in refused.items())
    raise CheckpointError(
        f"{store.folder} holds {numbered(len(refused), 'checkpoint')} and none is sound ({reasons}); restore one from a copy, "
        "or move the folder away to start over"
    )


def _best(store: CheckpointStore, entries: list[Entry], examine: Examine) -> Resolution:
    """The lowest validation loss among the sound; the next best where that one is damaged, which is told as refused."""
    if evaluated := best_entries(entries):
        return _first_sound(store, evaluated, examine, {})
    raise CheckpointError(
        f"{store.folder} has no checkpoint with a validation loss, so none is best; take latest instead"
    )


def _exactly(path: Path, help_text: str, examine: Examine = verify) -> Resolution:
    if not path.is_dir():
        raise CheckpointError(f"there is no checkpoint {path}; {help_text}")
    if not (path / MANIFEST).is_file() and (inside := CheckpointStore(path).entries()):
        raise CheckpointError(
            f"{path} is no checkpoint: it holds {len(inside)} of them; name the one to take, e.g. {inside[0].path} (the newest), or give latest "
            "for the newest of the run itself"
        )
    if problems := examine(path):
        raise CheckpointError(f"{path} is not sound ({'; '.join(problems)}); {help_text}")
    return Resolution(path, read_manifest(path))


def _steps_text(entries: list[Entry], store: CheckpointStore) -> str:
    if not entries:
        return f"{store.folder} holds none yet"
    return f"take one of the steps in {store.folder}: {', '.join(str(entry.step) for entry in entries)}"


@dataclass(frozen=True)
class Located:
    """One sound checkpoint, for reading."""

    path: Path
    manifest: Manifest
    passed_over: dict[str, str] = field(default_factory=dict)
    """Checkpoints that were not looked at further, by name, and why: newer ones that are damaged, and those of which nothing is known."""

    @property
    def words(self) -> str:
        """Which it is, and which it is not."""
        over = [f"{name} is passed over: {why}" for name, why in self.passed_over.items()]
        return "\n".join([*over, f"step {self.manifest.step:,} ({self.path})"])

    def facts(self) -> dict[str, Any]:
        """The same as plain values, for programs."""
        return {"step": self.manifest.step, "checkpoint": str(self.path), "passed_over": self.passed_over}


def locate(folder: Path, wanted: str) -> Located:
    """One sound checkpoint, for reading: `folder` itself, or the latest, the best or a step of those in it.

    Only `latest` may be an older one than it says; one that is meant by its step or as the best is that one or an error.
    """
    if wanted in ("", "none"):
        raise CheckpointError(
            f"--checkpoint is {wanted!r}, which names no checkpoint to read; give latest, best or a step"
        )
    if (folder / MANIFEST).is_file():
        return _located(_exactly(folder, "take another one, or restore it from a copy"))
    if (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} is an exported model, which transformers opens; this reads checkpoints: give the run's name or folder"
        )
    store = CheckpointStore(folder)
    if wanted == "best":
        return _located_best(store)
    if wanted.isdecimal() and store.path(int(wanted)).is_dir():
        return _located_step(store, int(wanted))
    resolution = resolve(store, wanted)
    if resolution.path is None:
        raise CheckpointError(f"{folder} holds no checkpoints; train first, or give the path of a checkpoint's folder")
    return _located(resolution)


def _located(resolution: Resolution) -> Located:
    return Located(*resolution.found(), {path.name: why for path, why in resolution.refused.items()})


def _located_best(store: CheckpointStore) -> Located:
    resolution = resolve(store, "best")
    if not resolution.refused:
        unread = [entry for entry in store.entries() if entry.manifest is None]
        unknown = {entry.path.name: f"whether it is the best is not known: {entry.problem}" for entry in unread}
        return Located(*resolution.found(), unknown)
    damaged = "; ".join(f"{path}: {why}" for path, why in resolution.refused.items())
    _, best = resolution.found()
    raise CheckpointError(
        f"the best checkpoint is not sound ({damaged}); restore it from a copy, or take the next best: --checkpoint {best.step} "
        f"(validation loss {best.val_loss:.4f})"
    )


def _located_step(store: CheckpointStore, step: int) -> Located:
    path = store.path(step)
    problems = verify(path)
    if not problems:
        return Located(path, read_manifest(path))
    others = [entry for entry in store.entries() if entry.step != step and not entry.problem]
    nearest = sorted(others, key=lambda entry: (entry.number > step, abs(entry.number - step)))
    sound = next((entry.step for entry in nearest if not verify(entry.path)), None)
    instead = "no other one is sound" if sound is None else f"or take the next one that is sound: --checkpoint {sound}"
    raise CheckpointError(f"{path} is not sound ({'; '.join(problems)}); restore it from a copy, {instead}")
