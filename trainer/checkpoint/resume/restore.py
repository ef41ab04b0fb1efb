"""Finding the checkpoint to continue from and loading it, without executing anything from it.

Weights come through safetensors, moments with torch's weights-only loader, the state from the verified manifest, random streams from
JSON. `Accelerator.load_state` on the same folder gives the same bits, for whoever trusts the folder.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from trainer import files
from trainer.checkpoint.context import CheckpointContext
from trainer.checkpoint.format import random_states
from trainer.checkpoint.format.manifest import Manifest, manifest_digest
from trainer.checkpoint.resume.changes import Change, changes, refusal, sentences, settings_of
from trainer.checkpoint.resume.crash_loops import suspects
from trainer.checkpoint.resume.lock import lock_checkpoints
from trainer.checkpoint.resume.select import Resolution, check_not_beyond, gone_on, resolve
from trainer.errors import CheckpointError
from trainer.journal import events_from
from trainer.locks import Lock
from trainer.text import numbered

log = logging.getLogger(__name__)


class Restorer:
    """Brings a run to a checkpoint. Every method is called on every rank; rank 0 decides and everyone is told."""

    def __init__(
        self, context: CheckpointContext, max_steps: int, take_lock: Callable[[Path], Lock | None] = lock_checkpoints
    ) -> None:
        """The run ends after `max_steps`; `take_lock` takes the folder of checkpoints for this process, on rank 0."""
        self._context, self._ranks, self._store = context, context.ranks, context.store
        self._max_steps, self._take_lock = max_steps, take_lock
        self.changes: list[Change] = []
        """What is not what it was in the checkpoint that was found, on rank 0."""

    def find(self, wanted: str) -> Resolution:
        """Sweeps leftovers and finds where to continue from, on rank 0; the same answer, or the same error, on every rank."""
        return self._ranks.broadcast_from_main(lambda: self._find(wanted))

    def _find(self, wanted: str) -> Resolution:
        self._context.lock = self._take_lock(self._store.folder)
        for name in self._store.sweep():
            log.info("removed %s, which was never committed", name)
        wanted = self._unless_gone_on(wanted)
        resolution = resolve(self._store, wanted, suspects=self._suspects())
        for path, reason in {**resolution.refused, **resolution.suspect}.items():
            log.warning("%s is passed over: %s", path.name, reason)
            self._context.journal.write("refusal", step=int(path.name[5:]), reason=reason)
        if wanted == "best":
            self._tell_unreadable()
        if resolution.manifest:
            path, manifest = resolution.found()
            check_not_beyond(self._context.run_folder, manifest.step, self._max_steps)
            description, processes = self._context.description, self._context.accelerator.num_processes
            self.changes = changes(manifest, settings_of(path), description, processes)
            if problem := refusal(self.changes, description.allowed_changes):
                raise CheckpointError(f"{path} cannot be continued by this run: {problem}")
        return resolution

    def _tell_unreadable(self) -> None:
        for entry in self._store.entries():
            if entry.manifest is None:
                log.warning("whether %s is the best is not known: %s", entry.path.name, entry.problem)
                self._context.journal.write("refusal", step=entry.step, reason=entry.problem)

    def _suspects(self) -> dict[int, str]:
        """The checkpoints from which starts die again and again, by the journal."""
        digests = {entry.number: manifest_digest(entry.path) for entry in self._store.entries() if entry.is_whole}
        return suspects(events_from(self._context.run_folder, "start", "resume", "save", "stop"), digests)

    def _unless_gone_on(self, wanted: str) -> str:
        """`latest` in place of a step, a path or best that this run was taken back to before and has gone on from.

        Whoever goes back starts the same command again after a crash; going back once more would throw away what came since.
        """
        newest = gone_on(self._store, wanted)
        if newest is None:
            return wanted
        log.warning(
            f"the run was taken back to {wanted} before and has gone on to step {newest.step}: it continues there; to go back "
            f"once more, move the newer step-* folders out of {self._store.folder}"
        )
        return "latest"

    def restore(self, resolution: Resolution, wanted: str, leave_curve: Callable[[], object]) -> None:
        """Loads weights, moments, state and random streams, bit for bit, then takes newer and refused folders out of the way.

        wanted       what resume_from_checkpoint said; the checkpoints that follow remember it when it went back
        leave_curve  called on rank 0 when the checkpoint comes from another run or branch, whose curve is not the one written here
        """
        context, folder, manifest = self._context, *resolution.found()
        same_optimizer = manifest.identity.get("optimizer") == context.description.identity.get("optimizer")
        optimizer = context.optimizer if same_optimizer else None  # another one's moments mean something else
        context.layout.load(folder, context.accelerator, context.model, optimizer)
        context.state.load_state_dict(manifest.state)
        self._restore_random_streams(folder, manifest)
        if self._context.state.progress.step != manifest.step:
            raise CheckpointError(
                f"{folder} contradicts itself: its manifest is of step {manifest.step}, and the state in it of step {self._context.state.progress.step}; "
                "somebody has changed it: resume from another checkpoint, resume_from_checkpoint=STEP"
            )
        self._context.origin = manifest.origin if wanted in ("latest", manifest.origin) else wanted
        self._ranks.broadcast_from_main(lambda: self._set_aside(resolution, leave_curve))
        if self._ranks.is_main:
            own = self._store.path(manifest.step)
            self._context.journal.write("resume", step=manifest.step, digest=manifest_digest(own), path=str(folder))

    def _restore_random_streams(self, folder: Path, manifest: Manifest) -> None:
        accelerator = self._context.accelerator
        if manifest.world_size == accelerator.num_processes:
            self._context.layout.load_random_streams(folder, accelerator)
            return
        seed = self._context.description.identity["seed"]
        random_states.seed_anew(seed, manifest.step, accelerator.process_index)
        log.info(
            f"{numbered(accelerator.num_processes, 'process')} now, {manifest.world_size} before: order and batches of the data are the "
            "same; random streams start anew from (seed, step, rank), and losses agree up to the order of summation"
        )

    def _set_aside(self, resolution: Resolution, leave_curve: Callable[[], object]) -> None:
        for path in resolution.refused:
            if path.exists():
                log.warning("%s is kept as %s", path.name, files.set_aside(path, "damaged").name)
        chosen, manifest = resolution.found()
        is_own = chosen.resolve() == self._store.path(manifest.step).resolve()
        for entry in self._store.entries():
            if entry.number > manifest.step or not is_own:
                moved = files.set_aside(entry.path, "abandoned").name
                log.warning("%s is not of the branch that goes on from here, and is kept as %s", entry.path.name, moved)
        if not is_own:
            policy, num_bytes = self._context.policy, manifest.num_bytes + (1 << 20)
            if policy.max_disk_bytes is not None:
                self._store.prune(policy, in_flight_bytes=num_bytes, held={chosen.name})
            leave_curve()  # before the commit: a crash between the two finds neither curve nor checkpoints of the branch that was left
            adopted = self._store.adopt(chosen, replace(manifest, origin=self._context.origin))
            log.info("%s is copied to %s: this run has its own from its first step on", chosen, adopted)
        self._store.point_links()

    def tell_changes(self) -> None:
        """Says what is another than it was in the checkpoint that was restored, in the log and the journal."""
        step = self._context.state.progress.step
        for sentence in sentences(self.changes, step):
            log.info(sentence)
        if self.changes:
            changed = {each.name: [each.before, each.now] for each in self.changes}
            self._context.journal.write("change", step=step, changes=changed)
