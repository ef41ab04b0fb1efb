"""When to save, what to save, and how to load it back: the only user of save_state and register_for_checkpointing.

A save, step by step:

    all ranks   Accelerator.save_state(.staging-N)      model, optimizer, registered state; each rank its random streams
    all ranks   random_states_R.json                    the same streams as JSON, which is what our own resume reads
    rank 0      digests, manifest, fsync, rename        the commit; then links and pruning
    all ranks   hear whether it worked                  a failed save is a counted warning, not the end of the run

A load executes nothing from the folder: weights through safetensors, moments with weights_only, the state from the verified manifest,
random streams from JSON. `Accelerator.load_state` on the same folder gives the same bits, for whoever trusts the folder.
"""

import json
import logging
import os
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError
from safetensors.torch import load_model

from trainer import files
from trainer.checkpoint import random_states
from trainer.checkpoint.manifest import Manifest, describe_files, incompatibilities
from trainer.checkpoint.resume import Resolution, gone_on, resolve
from trainer.checkpoint.retention import Policy
from trainer.checkpoint.store import CheckpointStore
from trainer.errors import CheckpointError, TrainerError
from trainer.state import TrainState
from trainer.text import duration, size

log = logging.getLogger(__name__)

WRITE_FAILURES = (OSError, RuntimeError, SafetensorError)
"""What a full or broken disk raises: the system itself, torch.save, safetensors."""

MAX_FAILURES = 3
"""Failed saves in a row after which the run stops: the disk will not mend itself."""


@dataclass(frozen=True)
class Description:
    """What a manifest says beside the files: the facts of the run that do not change while it runs."""

    identity: dict[str, Any]
    model: dict[str, Any]
    tokenizer: str | None
    vocab_size: int
    precision: str
    versions: dict[str, str]
    config_text: str
    validation: str | None = None
    """Fingerprint of the held-out data."""


class Checkpointer:
    """Saves and restores one run. Every method is called on every rank; rank 0 decides and everyone is told."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        state: TrainState,
        store: CheckpointStore,
        description: Description,
        *,
        every_steps: int,
        policy: Policy,
        before_commit: Callable[[], None],
    ) -> None:
        """`model` is the bare module whose keys are stored; `before_commit` makes metrics durable up to the saved step."""
        self._accelerator, self._model, self._optimizer, self._state = accelerator, model, optimizer, state
        self._store, self._description = store, description
        self._every_steps, self._policy, self._before_commit = every_steps, policy, before_commit
        self._saved_step: int | None = None
        self._failures = 0
        self._untidy = 0
        self._origin: str | None = None
        self._held: BinaryIO | None = None
        accelerator.register_for_checkpointing(state)

    # Saving

    def due(self, step: int) -> str | None:
        """The reason to save at this step: every n-th is; None when there is none."""
        return "periodic" if step % self._every_steps == 0 else None

    def save(self, reason: str, *, loss: float | None, val_loss: float | None) -> bool:
        """Commits a checkpoint of this moment, if this step has none yet; returns whether it has one now.

        raises CheckpointError after MAX_FAILURES failures in a row, and at once when a final or interrupt save fails
        """
        step = self._state.progress.step
        if self._saved_step == step:
            return True
        staging = self._store.folder / f".staging-{step:08d}"
        started = time.perf_counter()
        failure = self._agree(self._begin(step)) or self._agree(self._write(staging))
        if not failure:
            failure = self._agree(
                self._commit(staging, reason, loss, val_loss) if self._accelerator.is_main_process else None
            )
        if failure:
            self._after_failure(step, reason, failure)
            return False
        self._failures, self._saved_step = 0, step
        if self._accelerator.is_main_process:
            written = self._store.entry(self._store.path(step)).manifest
            log.info(
                "step %d: checkpoint (%s), %s in %s",
                step,
                reason,
                size(written.num_bytes),
                duration(time.perf_counter() - started),
            )
        return True

    def _begin(self, step: int) -> str | None:
        if not self._accelerator.is_main_process:
            return None
        try:
            self._store.begin(step)
        except OSError as error:
            return _say(error)
        return None

    def _write(self, staging: Path) -> str | None:
        """This rank's files; the text of the failure where there is one, since a rank that raised alone would leave the others waiting."""
        rank = self._accelerator.process_index
        try:
            self._accelerator.save_state(str(staging))
            streams = random_states.capture(self._accelerator.device)
            (staging / f"random_states_{rank}.json").write_text(json.dumps(streams), encoding="utf-8")
        except WRITE_FAILURES as error:
            return _say(error)
        return None

    def _commit(self, staging: Path, reason: str, loss: float | None, val_loss: float | None) -> str | None:
        try:
            (staging / "config.yaml").write_text(self._description.config_text, encoding="utf-8")
            for path in (path for path in staging.rglob("*") if path.is_file()):
                os.chmod(path, 0o644)  # safetensors makes its file readable by the owner alone
            self._before_commit()
            manifest = self._manifest(reason, loss, val_loss, describe_files(staging))
            self._store.commit(staging, manifest)
        except WRITE_FAILURES as error:
            return _say(error)
        self._tidy(
            {
                "old checkpoints": lambda: self._store.prune(self._policy),
                "the links latest and best": self._store.point_links,
            }
        )
        return None

    def _tidy(self, works: dict[str, Callable[[], object]]) -> None:
        """What follows a commit or a failure; every checkpoint is whole without it, and the next save tries again."""
        for what, work in works.items():
            try:
                work()
            except OSError as error:
                self._untidy += 1
                log.warning(
                    "tidying %s in %s failed: %s (%d times by now)", what, self._store.folder, _say(error), self._untidy
                )

    def _manifest(self, reason: str, loss: float | None, val_loss: float | None, described: dict[str, Any]) -> Manifest:
        progress, facts = self._state.progress, self._description
        return Manifest(
            step=progress.step, sequences=progress.sequences, tokens=progress.tokens, reason=reason,
            created=datetime.now(UTC).isoformat(timespec="seconds"), loss=loss, val_loss=val_loss,
            validation=self._description.validation, world_size=self._accelerator.num_processes, precision=facts.precision, identity=facts.identity,
            origin=self._origin, model=facts.model, tokenizer=facts.tokenizer, vocab_size=facts.vocab_size, state=self._state.state_dict(),
            versions=facts.versions, files=described,
        )  # fmt: skip

    def _agree(self, failure: str | None) -> str | None:
        """The first failure of any rank, on every rank."""
        if self._accelerator.num_processes == 1:
            return failure
        return next((text for text in gather_object([failure]) if text), None)

    def _after_failure(self, step: int, reason: str, failure: str) -> None:
        self._failures += 1
        if self._accelerator.is_main_process:
            leftover = self._store.folder / f".staging-{step:08d}"
            self._tidy({"what is left of it": lambda: files.remove_folder(leftover) if leftover.exists() else None})
        text = f"the checkpoint of step {step} could not be written to {self._store.folder} ({failure})"
        if reason in ("final", "interrupt") or self._failures >= MAX_FAILURES:
            raise CheckpointError(
                f"{text}, the {self._failures}. failure in a row; the checkpoints before it are whole: make room or mend the disk, "
                "then start again with resume_from_checkpoint=latest"
            )
        log.warning(
            "%s; training goes on, and the next save tries again (%d of %d)", text, self._failures, MAX_FAILURES
        )

    # Loading

    def find(self, wanted: str) -> Resolution:
        """Sweeps leftovers and finds where to continue from, on rank 0; the same answer, or the same error, on every rank."""
        return self._told_by_main(lambda: self._find(wanted))

    def _find(self, wanted: str) -> Resolution:
        self._hold()
        for name in self._store.sweep():
            log.info("removed %s, which was never committed", name)
        resolution = resolve(self._store, self._unless_gone_on(wanted))
        for path, reason in resolution.refused.items():
            log.warning("%s is passed over: %s", path.name, reason)
        if resolution.manifest and (different := _differences(resolution.manifest, self._description)):
            raise CheckpointError(
                f"{resolution.path} cannot be continued by this run: {'; '.join(different)}. "
                "Give the new run another name, or undo the change"
            )
        return resolution

    def _hold(self) -> None:
        """Takes these checkpoints for this process: another that swept or pruned here would remove what this one writes."""
        self._held = files.lock(self._store.folder / ".lock")
        if self._held is None:
            raise CheckpointError(
                f"another process is writing checkpoints to {self._store.folder} right now; wait for it, stop it, or give this run "
                "another name"
            )

    def _unless_gone_on(self, wanted: str) -> str:
        """`latest` in place of a step, a path or best that this run was taken back to before and has gone on from.

        Whoever goes back starts the same command again after a crash; going back once more would throw away what came since.
        """
        newest = gone_on(self._store, wanted)
        if newest is None:
            return wanted
        log.warning(
            "the run was taken back to %s before and has gone on to step %d: it continues there; to go back once more, move the "
            "newer step-* folders out of %s", wanted, newest.step, self._store.folder,
        )  # fmt: skip
        return "latest"

    def restore(self, resolution: Resolution, wanted: str, leave_curve: Callable[[], object]) -> None:
        """Loads weights, moments, state and random streams, bit for bit, then takes newer and refused folders out of the way.

        wanted       what resume_from_checkpoint said; the checkpoints that follow remember it when it went back
        leave_curve  called on rank 0 when the checkpoint comes from another run or branch, whose curve is not the one written here
        """
        folder, manifest = resolution.path, resolution.manifest
        load_model(self._model, folder / "model.safetensors", strict=True)
        self._optimizer.load_state_dict(_load_tensors(folder / "optimizer.bin"))
        if self._accelerator.scaler is not None and (folder / "scaler.pt").is_file():
            self._accelerator.scaler.load_state_dict(_load_tensors(folder / "scaler.pt"))
        self._state.load_state_dict(manifest.state)
        self._restore_random_states(folder, manifest)
        assert self._state.progress.step == manifest.step, "the state and the manifest disagree about the step"
        self._origin = manifest.origin if wanted in ("latest", manifest.origin) else wanted
        self._told_by_main(lambda: self._set_aside(resolution, leave_curve))
        self._saved_step = manifest.step
        self._tell_changes(manifest)

    def _restore_random_states(self, folder: Path, manifest: Manifest) -> None:
        accelerator = self._accelerator
        rank = accelerator.process_index
        if manifest.world_size == accelerator.num_processes:
            states = json.loads((folder / f"random_states_{rank}.json").read_text(encoding="utf-8"))
            random_states.restore(states, accelerator.device)
            return
        random_states.seed_anew(self._description.identity["seed"], manifest.step, rank)
        log.info(
            "%d processes now, %d before: order and batches of the data are the same; random streams start anew from "
            "(seed, step, rank), and losses agree up to the order of summation",
            accelerator.num_processes, manifest.world_size,
        )  # fmt: skip

    def _set_aside(self, resolution: Resolution, leave_curve: Callable[[], object]) -> None:
        for path in resolution.refused:
            if path.exists():
                log.warning("%s is kept as %s", path.name, files.set_aside(path, "damaged").name)
        is_own = resolution.path.resolve() == self._store.path(resolution.manifest.step).resolve()
        for entry in self._store.entries():
            if entry.step > resolution.manifest.step or not is_own:
                moved = files.set_aside(entry.path, "abandoned").name
                log.warning("%s is not of the branch that goes on from here, and is kept as %s", entry.path.name, moved)
        if not is_own:
            leave_curve()  # before the commit: a crash between the two finds neither curve nor checkpoints of the branch that was left
            adopted = self._store.adopt(resolution.path, replace(resolution.manifest, origin=self._origin))
            log.info("%s is copied to %s: this run has its own from its first step on", resolution.path, adopted)
        self._store.point_links()

    def _tell_changes(self, manifest: Manifest) -> None:
        if manifest.precision != self._description.precision:
            log.info("precision is %s now and was %s before", self._description.precision, manifest.precision)
        for package, version in self._description.versions.items():
            if (before := manifest.versions.get(package)) not in (None, version):
                log.warning("%s is %s now and was %s: a replay may differ in the last bits", package, version, before)

    def _told_by_main(self, decide: Callable[[], Any]) -> Any:
        """Runs `decide` on rank 0 and gives its result, or its error, to every rank: one that raised alone would leave the others waiting."""
        outcome: list[Any] = [None, None]
        if self._accelerator.is_main_process:
            try:
                outcome[0] = decide()
            except TrainerError as error:
                outcome[1] = error
            except OSError as error:
                outcome[1] = CheckpointError(
                    f"{self._store.folder} cannot be used ({_say(error)}); mend that and start again"
                )
        if self._accelerator.num_processes > 1:
            broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    # Room

    def check_room(self) -> None:
        """Compares the bytes that the kept checkpoints and one in flight will take with what is free, before the first step."""
        self._told_by_main(self._check_room)

    def _check_room(self) -> None:
        one = expected_bytes(self._model, self._optimizer)
        num_kept = self._policy.keep_last + self._policy.keep_best + 1
        there = sum(
            manifest.num_bytes for manifest in self._store.sound_manifests()
        )  # what was set aside gives no room back
        needed = max(0, one * num_kept - there)
        free = files.free_bytes(self._store.folder)
        if needed > free:
            raise CheckpointError(
                f"the checkpoints of this run need {size(needed)} more in {self._store.folder} ({num_kept} of {size(one)}: keep_last, "
                f"keep_best and one being written), and {size(free)} are free; lower checkpoint.keep_last, make room, or set "
                "checkpoints_folder to a larger disk"
            )
        log.info(
            "a checkpoint takes %s; the run keeps %s of them at most, %s are free", size(one), num_kept - 1, size(free)
        )


def expected_bytes(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of one checkpoint: parameters, and the moments that the optimizer keeps of each (two for Adam, one for Muon)."""
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    moments = sum(
        p.numel() * p.element_size() * (1 if "momentum" in group else 2)
        for group in optimizer.param_groups
        for p in group["params"]
    )
    return parameters + moments


def _differences(manifest: Manifest, description: Description) -> list[str]:
    return incompatibilities(manifest, description.identity, description.model)


def _load_tensors(path: Path) -> dict[str, Any]:
    """A file of torch.save that holds tensors and plain values; anything that would have to be executed is refused."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{path} cannot be loaded although its digest is right ({reason}): it is not what this trainer writes; resume from another checkpoint"
        ) from None


def _say(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
