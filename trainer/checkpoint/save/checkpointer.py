"""When to save and how: the promise that little is lost, kept at a cost that is bounded.

    in memory   a snapshot now and then: one copy, after which training goes on (snapshot.py). It outlives the trainer, since
                another process holds it and commits the newest when the trainer dies (writer.py)
    on disk     by a budget (cadence.py), at steps that the settings name, for a best loss, and at the end: the same snapshot, written by
                that process while training goes on; only a final and an interrupt save are waited for

Rank 0's clock decides, and its request travels with the result of a step, so that every rank saves after the same one. Where the
memory has no room for a snapshot, saves are plain ones (plain.py), and that is said.
"""

import logging
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

import torch
from accelerate import Accelerator

from trainer.checkpoint.commit import CommitPlan, SaveResult
from trainer.checkpoint.format.description import Description
from trainer.checkpoint.format.manifest import Manifest, last_evaluation
from trainer.checkpoint.format.retention import Policy
from trainer.checkpoint.format.store import CheckpointStore
from trainer.checkpoint.format.tensor_names import first_not_finite, moments
from trainer.checkpoint.mirror.worker import mirror_settings
from trainer.checkpoint.ranks import Ranks
from trainer.checkpoint.resume.diverged import set_diverged_aside
from trainer.checkpoint.resume.restore import Restorer
from trainer.checkpoint.save.blocking import BlockingSaves
from trainer.checkpoint.save.failures import SaveFailures
from trainer.checkpoint.save.forecast import Course
from trainer.checkpoint.save.room import Room
from trainer.checkpoint.save.schedule import Budget, Cadence
from trainer.checkpoint.save.snapshot import small_files
from trainer.checkpoint.save.status import Told
from trainer.checkpoint.save.writer_client import Background, Patience, WriterLost, begin_background, disk_answers
from trainer.config.schema import CheckpointConfig
from trainer.errors import CheckpointError
from trainer.journal import Journal
from trainer.state import TrainState
from trainer.step_result import SaveRequest
from trainer.text import duration, one_line

log = logging.getLogger(__name__)

WAITED_FOR = ("final", "interrupt")
"""Reasons for a save that must be on the disk before anything else happens."""


BY_BUDGET = ("snapshot", "budget")
"""Reasons for a save that may be left out while the disk is behind: the next one serves as well. Others are for their very step."""

STILL_SECONDS = 60.0
"""A writer that has not moved for so long is not waited for by any save of a run that goes on; it may come back."""

TAKEN, LEFT_OUT, BY_HAND = "taken", "left out", "by hand"
"""What can become of a save: a snapshot that the writer has, nothing, or what all ranks do themselves while training waits."""


class Checkpointer:
    """Saves one run. Every method is called on every rank; rank 0 decides and everyone is told."""

    def __init__(
        self,
        accelerator: Accelerator,
        ranks: Ranks,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        state: TrainState,
        store: CheckpointStore,
        description: Description,
        restorer: Restorer,
        settings: CheckpointConfig,
        policy: Policy,
        *,
        run_folder: Path,
        curve: str,
        mark: str,
        course: Course,
        before_commit: Callable[[], None],
        report: Callable[[int, dict[str, float]], None],
    ) -> None:
        """
        model          the bare module whose keys are stored
        curve, mark    names in `run_folder`: the metrics that must be durable with a checkpoint, and the file that says there is one
        before_commit  makes these metrics durable, where this process commits
        report         hears of each checkpoint: its step, and numbers by tag
        """
        self._accelerator, self._ranks, self._model, self._optimizer = accelerator, ranks, model, optimizer
        self._state, self._store, self._description, self._restorer = state, store, description, restorer
        self._settings = settings
        self._plan = CommitPlan(
            folder=store.folder,
            run_folder=run_folder,
            metrics_file=run_folder / curve,
            marker=run_folder / mark,
            policy=policy,
            mirror=mirror_settings(settings, store.folder.name),
        )
        self._blocking = BlockingSaves(accelerator, ranks, store, self._plan, description.config_text, before_commit)
        self._course, self._report = course, report
        self._room = Room(model, optimizer, store, policy, settings, course)
        self._journal = Journal(run_folder)
        self._background: Background | None = None
        self._retired: Background | None = None
        self._cadence: Cadence | None = None
        self._saved_step: int | None = None
        self._resumed_step: int | None = None
        self._taken_at: dict[int, float] = {}
        self._failures = SaveFailures(store.folder, settings.max_failures)
        self._untidy = self._skipped = 0
        self._is_still, self._told = False, Told()
        self._requested = SaveRequest.NONE
        accelerator.register_for_checkpointing(state)

    def check_room(self, resumed: Path | None = None) -> None:
        """Proves before the first step that the disk takes what the kept checkpoints, one of them `resumed`, and one in flight will need."""
        for name, reason in self._ranks.told_by_main(lambda: self._room.check([resumed.name] if resumed else [])):
            if self._ranks.is_main:
                self._journal.write("prune", name=name, reason=reason)

    def begin(self, resumed_step: int | None) -> None:
        """Allocates the slots and starts the writer, once the run stands where it begins."""
        self._saved_step = self._resumed_step = resumed_step
        if not self._ranks.is_main:
            return
        self._background = begin_background(
            self._model,
            self._optimizer,
            self._accelerator.device,
            self._room.slot_bytes(),
            self._settings,
            self._restorer.held,
            self._plan,
        )
        self._cadence = Cadence(
            Budget(
                self._settings.max_lost_work_seconds,
                self._settings.max_overhead_fraction,
                self._settings.every_minutes,
                self._settings.every_tokens,
                writer_takes_from_step=self._accelerator.device.type == "cpu",
                has_snapshots=self._background is not None,
            ),
            time.monotonic(),
            self._state.progress.tokens,
        )

    # When

    def due(self) -> str | None:
        """The reason to save at this step, by the step alone; the same on every rank. None when there is none."""
        step, settings = self._state.progress.step, self._settings
        if self.ended_epoch() is not None and settings.keep_epochs:
            return "epoch"
        if settings.keep_every_steps and step % settings.keep_every_steps == 0:
            return "every"
        if settings.every_steps and step % settings.every_steps == 0:
            return "periodic"
        return None

    def ended_epoch(self) -> int | None:
        """The epoch that the last step ended, counted from 1; None when it ended within one."""
        now = self._state.progress.sequences // self._course.sequences_per_epoch
        before = (self._state.progress.sequences - self._course.global_batch) // self._course.sequences_per_epoch
        return now if now > before else None

    def save_request(self) -> SaveRequest:
        """What rank 0's clock asks for after this step; the ranks answer once all have read it. On other ranks: nothing."""
        if not self._ranks.is_main:
            return SaveRequest.NONE
        self._poll()
        if self._failures.gave_up:
            return SaveRequest.GIVE_UP
        if self._requested:
            return SaveRequest.NONE  # the ranks have not all read it yet
        now = time.monotonic()
        if self._cadence.write_due(now, self._state.progress.tokens):
            self._requested = SaveRequest.WRITE
        elif self._background and self._background.writing is None and self._cadence.snapshot_due(now):
            # While one slot is being written, a snapshot would go over the newest that is whole.
            self._requested = SaveRequest.SNAPSHOT
        return self._requested

    def stepped(self, seconds: float) -> None:
        """A step took so long, without the saves and evaluations after it; called on rank 0."""
        self._cadence.stepped(seconds)

    def acknowledge(self) -> None:
        """Every rank has read the request; it is met, or not: weights in doubt are not saved."""
        self._requested = SaveRequest.NONE

    # Saving

    def save(self, reason: str, *, loss: float | None, val_loss: float | None) -> str | None:
        """Saves this moment, if that was not done; a final or an interrupt save is on the disk when this returns.

        Returns, on every rank, the tensor whose numbers are not finite, where that is known and the reason that there is no checkpoint.

        reason  `final`, `interrupt`, `best`, one of `due`, `budget` for a write that was requested, `snapshot` for memory only
        raises  CheckpointError on every rank when a final or an interrupt save fails
        """
        step = self._state.progress.step
        if self._saved_step == step:
            return None
        started, not_finite = time.perf_counter(), None
        manifest = self._manifest(reason, loss, val_loss)
        how = self._ranks.told_by_main(lambda: BY_HAND if self._background is None else TAKEN)
        if how == TAKEN:
            own = small_files(self._accelerator, self._state.state_dict(), self._description.config_text)
            files_of_ranks = self._ranks.gathered(own)
            small = {name: content for of_rank in files_of_ranks for name, content in of_rank.items()}
            taken = self._take(manifest, small, started) if self._ranks.is_main else TAKEN
            if reason not in BY_BUDGET:  # where no writer is left to do it, all ranks do it themselves
                waits = reason in WAITED_FOR
                how, not_finite = self._ranks.told_by_main(
                    lambda: self._wait_for(step, taken) if waits else (taken, None)
                )
        is_saved = how == TAKEN
        if how == BY_HAND and reason != "snapshot":
            done = self._save_plainly(manifest, started)
            is_saved, not_finite = not done.failure, done.not_finite
        self._saved_step = step if is_saved else self._saved_step
        return not_finite

    def _take(self, manifest: Manifest, small: dict[str, bytes], started: float) -> str:
        """Snapshots into a slot and goes on; says what became of it. Waits for a slot where this very step is wanted."""
        to_write = manifest.reason != "snapshot"
        try:
            patience = Patience(
                f"step {manifest.step}: waiting for room in memory, because the disk is busy with earlier checkpoints"
            )
            while (slot := self._background.free_slot()) is None:
                if manifest.reason in BY_BUDGET or (manifest.reason not in WAITED_FOR and self._is_still):
                    self._skip(manifest)
                    return LEFT_OUT
                self._hear(self._background.wait())
                self._look_at_writer()
                patience.tell()
            self._background.take(slot, manifest, small, must_write=to_write)
        except WriterLost as error:
            self._do_without_writer(error)
            return BY_HAND
        now = time.monotonic()
        if to_write:
            self._taken_at[manifest.step] = now
        stall = time.perf_counter() - started
        if manifest.reason not in WAITED_FOR:
            self._cadence.snapshot_taken(now, stall, tokens=manifest.tokens, to_write=to_write)
        return TAKEN

    def _skip(self, manifest: Manifest) -> None:
        """The disk is behind: a save that only the budget asked for is left out, and any while the writer stands still."""
        if manifest.reason == "snapshot":
            return  # its turn comes with the next free slot
        self._skipped += 1
        self._report(
            manifest.step, {"checkpoint/skipped_saves": float(self._skipped), **self._cadence.promise(time.monotonic())}
        )
        if self._skipped.bit_count() == 1:
            self._journal.write("skip", step=manifest.step, reason=manifest.reason, number=self._skipped)
            log.warning(
                "step %d: no checkpoint (%s), because the disk is still busy with earlier ones (%d left out by now)",
                manifest.step,
                manifest.reason,
                self._skipped,
            )

    def _wait_for(self, step: int, taken: str) -> tuple[str, str | None]:
        """Waits until a step is written; who is left to do it where no writer is, and a tensor that kept it from being written.

        raises  CheckpointError when it cannot be written
        """
        if taken == TAKEN:
            try:
                done = self._background.wait_for(step, self._hear)
                if done.failure:
                    raise CheckpointError(self._failures.text(step, done.failure))
                return TAKEN, done.not_finite
            except WriterLost as error:
                self._taken_at.pop(step, None)  # it is written in another way, or that is an error
                self._do_without_writer(error)
        if not disk_answers(self._store.folder):
            raise CheckpointError(self._failures.text(step, "its disk does not answer"))
        return BY_HAND, None

    def _do_without_writer(self, error: WriterLost) -> None:
        log.warning("saves: training waits for them from here on, because %s", error)
        for step in sorted(self._taken_at):
            self._journal.write("save_failed", step=step, reason="writer", failure=str(error))
            log.warning("step %d: its checkpoint is lost with the writer", step)
        self._taken_at.clear()
        self._journal.write("writer", state="done without", reason=str(error))
        self._retired, self._background = (
            self._background,
            None,
        )  # its memory stays: a GPU's copies into it may be under way
        self._cadence.writer_lost()

    def _save_plainly(self, manifest: Manifest, started: float) -> SaveResult:
        """Saves while training waits; what came of it. raises CheckpointError when a waited-for save failed"""
        tensors = (*self._model.named_parameters(), *moments(self._model, self._optimizer))
        not_finite = self._ranks.first_failure(first_not_finite(tensors))
        done = self._blocking.leave_out(manifest, not_finite) if not_finite else self._blocking.save(manifest)
        if self._ranks.is_main:
            seconds = time.perf_counter() - started
            self._taken_at[done.step] = time.monotonic() - seconds
            self._cadence.snapshot_taken(time.monotonic(), seconds, tokens=manifest.tokens, to_write=True)
            self._hear([done])
        if done.failure and manifest.reason in WAITED_FOR:
            raise CheckpointError(self._failures.text(manifest.step, done.failure))
        return done

    def _manifest(self, reason: str, loss: float | None, val_loss: float | None) -> Manifest:
        progress, facts, state = self._state.progress, self._description, self._state.state_dict()
        return Manifest(
            step=progress.step,
            sequences=progress.sequences,
            tokens=progress.tokens,
            reason=reason,
            epoch=self.ended_epoch(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            loss=loss,
            val_loss=val_loss,
            validation=facts.validation,
            world_size=self._ranks.count,
            precision=facts.precision_now,
            identity=facts.identity,
            origin=self._restorer.origin,
            model=facts.model,
            tokenizer=facts.tokenizer,
            vocab_size=facts.vocab_size,
            state=state,
            **last_evaluation(state),
            versions=facts.versions,
            precision_facts=facts.precision_facts(),
            conditions=dict(facts.conditions),
        )

    # What came of it

    def before_update(self) -> None:
        """Called before each optimizer step: weights that are being copied must not change under the copy."""
        if self._background is not None:
            self._background.settle()

    def _poll(self) -> None:
        if self._background is None:
            return
        try:
            self._background.advance()
            self._hear(self._background.poll())
            self._look_at_writer()
        except WriterLost as error:
            self._do_without_writer(error)

    def _look_at_writer(self) -> None:
        """Tells with figures when the writer stands still, and when it moves again."""
        still = self._background.still_seconds
        if (still > STILL_SECONDS) == self._is_still:
            return
        self._is_still = not self._is_still
        self._journal.write("writer", state="still" if self._is_still else "moves")
        if not self._is_still:
            log.info("the writer moves again; saves are made as before (%d left out by now)", self._skipped)
            return
        now = time.monotonic()
        self._report(self._state.progress.step, self._cadence.promise(now))
        log.warning(
            "the writer has moved nothing for %s: does the disk of %s hang? Training goes on and saves are left out meanwhile; if the machine "
            "died now, %s of training would be lost",
            duration(still),
            self._store.folder,
            duration(self._cadence.meter.lost_work_seconds(now)),
        )

    def _hear(self, answers: list[SaveResult]) -> None:
        """Takes in what was written, or failed to be."""
        for done in answers:
            self._tell_untidy(done.untidy)
            if done.failure or done.not_finite:
                self._after_nothing(done)
                continue
            in_any_case, self._failures.in_a_row = done.reason in WAITED_FOR or self._failures.in_a_row > 0, 0
            now = time.monotonic()
            moment = self._taken_at.pop(done.step, now)
            is_last = self._background is None or not self._background.pending()
            self._cadence.write_committed(now, done.seconds, done.cpu_seconds, moment, is_last=is_last)
            facts = {"num_bytes": done.num_bytes, "seconds": now - moment, "now": now, "in_any_case": in_any_case}
            if line := self._told.line(done.step, done.reason, **facts):
                log.info(line)
            self._report(
                done.step,
                {
                    "checkpoint/bytes": float(done.num_bytes),
                    **self._cadence.written(done.seconds),
                    **self._cadence.promise(now),
                },
            )
            try:
                self._room.look(now)
            except OSError as error:
                self._tell_untidy([f"looking at the free space: {one_line(error)}"])
            news = self._cadence.news()
            forecast = self._room.forecast(
                done.num_bytes, self._state.progress, self._cadence.plan, self._cadence.costs, anew=news is not None
            )
            for sentence in [*([news] if news else []), *forecast]:
                log.info("saves: %s", sentence)

    def _after_nothing(self, done: SaveResult) -> None:
        self._cadence.write_failed(done.cpu_seconds)
        self._taken_at.pop(done.step, None)
        if done.not_finite:
            self._failures.not_finite(done)
        else:
            self._failures.failed(done, is_waited_for=done.reason in WAITED_FOR)

    def _tell_untidy(self, failures: Iterable[str]) -> None:
        for failure in failures:
            self._untidy += 1
            log.warning("tidying %s failed: %s (%d times by now)", self._store.folder, failure, self._untidy)

    def give_up(self) -> None:
        """Ends the run on every rank, because too many saves in a row have failed. raises CheckpointError"""

        def say_why() -> None:
            raise CheckpointError(self._failures.gave_up)

        self._ranks.told_by_main(say_why)

    def leave_diverged(self, first_unsure: int) -> None:
        """Sets aside what this launch saved from this step on, in memory and on the disk, because the run has diverged."""
        if not self._ranks.is_main:
            return
        if self._background is not None:
            self._background.forget_from(first_unsure)
        self.close()
        try:
            set_diverged_aside(self._store, first_unsure, self._resumed_step, self._journal)
        except OSError as error:
            self._tell_untidy([f"setting aside what has diverged: {one_line(error)}"])

    def close(self) -> None:
        """Waits until everything that was promised is on the disk."""
        if self._background is not None:
            patience = Patience("waiting for checkpoints to reach the disk")
            try:
                while self._background.pending():
                    self._background.advance(wait=True)
                    self._hear(self._background.wait())
                    patience.tell()
            except WriterLost as error:
                self._do_without_writer(error)

    def end(self, *, wait_for_copies: bool) -> None:
        """Lets the writer go, which commits the newest snapshot that is not on the disk; nothing can be saved after it."""
        if self._background is not None:
            self._background.end(wait_for_copies=wait_for_copies)
        self._blocking.end(wait_for_copies=wait_for_copies)
