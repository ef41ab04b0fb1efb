"""What makes a run a finished one: its exported model, and, where a person ends it before its last step, the word for that.

`trainer finish RUN` takes the newest sound checkpoint for the final one. Everything that can fail comes before anything is changed, and
the outcome is written last, so that a run is finished whole or not at all.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from trainer import files
from trainer.checkpoint.format.manifest import MANIFEST, to_json
from trainer.checkpoint.format.store import CheckpointStore
from trainer.checkpoint.resume.lock import lock_checkpoints
from trainer.checkpoint.resume.select import Resolution, resolve
from trainer.config.folders import checkpoints_folder, find_run
from trainer.config.load import load_resolved
from trainer.ending.causes import Cause
from trainer.ending.outcome_file import facts_at, read_outcome, write_outcome
from trainer.ending.outcomes import Outcome
from trainer.errors import CheckpointError
from trainer.export import export_checkpoint
from trainer.journal import Journal
from trainer.locks import lock_run
from trainer.metrics.board import write_end
from trainer.metrics.curves import cut_after

EXPORTED = "exported"
_LEFT_OVER = re.compile(rf"\.earlier-{EXPORTED}(-\d+)?|\.staging-{EXPORTED}-\d+")


@dataclass(frozen=True)
class Finished:
    """A run that was declared finished."""

    name: str
    step: int
    planned_steps: int
    """What max_steps was."""
    checkpoint: Path
    exported: Path
    passed_over: dict[str, str]
    """Newer checkpoints that are damaged, by name, and what is wrong with each."""

    def text(self) -> str:
        over = [f"{name} is passed over: {why}" for name, why in self.passed_over.items()]
        whole = f"{self.name} is finished at step {self.step} of {self.planned_steps}: its final checkpoint is {self.checkpoint}, and the model is in {self.exported}"
        return "\n".join([*over, whole])


def finish(run: str) -> Finished:
    """Declares a run finished where its newest sound checkpoint stands, and exports that.

    run     its name, or its folder in runs/
    raises  LaunchError when a process trains it, CheckpointError when it has no sound checkpoint or that cannot be rewritten
    """
    folder = find_run(run)
    config = load_resolved(folder / "config.yaml")
    store = CheckpointStore(checkpoints_folder(config))
    if not store.entries():
        raise CheckpointError(
            f"{store.folder} holds no checkpoints, so there is nothing that {config.name} could be finished with; train it first"
        )
    with lock_run(folder), lock_checkpoints(store.folder):
        resolution = resolve(store, "latest")
        path, manifest = resolution.found()
        step, exported = manifest.step, export_final(path, folder)
        _make_final(store, resolution)
        cut_after(folder, step)
        reason = f"declared finished at step {step} of {config.max_steps}"
        before = facts_at(read_outcome(folder), step)
        found = {name: getattr(manifest, name) for name in ("loss", "val_loss", "last_val_loss", "last_val_step")}
        facts = {
            **{name: value for name, value in before.items() if name != "untidy"},
            **{name: value for name, value in found.items() if value is not None},
            "exported": str(exported),
            "exported_step": step,
            "planned_steps": config.max_steps,
        }
        write_outcome(folder, Outcome.FINISHED, step=step, reason=reason, **facts)
        Journal(folder).write("stop", cause=Cause.FINISHED, step=step, reason=reason)
        if "tensorboard" in config.metrics.trackers:
            write_end(folder, step)
    over = {path.name: why for path, why in resolution.refused.items()}
    return Finished(config.name, step, config.max_steps, path, exported, over)


def _make_final(store: CheckpointStore, resolution: Resolution) -> None:
    """Marks a checkpoint as the final one, and takes newer ones, which are damaged, out of the way."""
    path, manifest = resolution.found()
    final = replace(manifest, reason="final")
    try:
        files.write_atomic(path / MANIFEST, to_json(final), partial_in=store.folder)
    except OSError as error:
        raise CheckpointError(f"the manifest of {path} cannot be rewritten ({error}); fix that and try again") from None
    for path in resolution.refused:
        files.set_aside(path, "damaged")
    store.point_links()


def export_final(checkpoint: Path, folder: Path) -> Path:
    """Exports a run's final checkpoint into its folder, in place of an earlier export, and removes what exports that were killed left there."""
    exported = export_checkpoint(checkpoint, folder / EXPORTED, replace=True)
    for path in list(folder.iterdir()):
        if _LEFT_OVER.fullmatch(path.name):
            files.remove_folder(path)
    return exported
