"""When to save and how: little work is lost, at a cost that is bounded.

    in memory   a snapshot now and then: one copy, after which training goes on (snapshot.py). It outlives the trainer, since
                another process holds it and commits the newest when the trainer dies (writer.py)
    on disk     by a budget (schedule.py), at steps that the settings name, for a best loss, and at the end: the same snapshot, written by
                that process while training goes on; only a final and an interrupt save are waited for

Rank 0's clock decides, and its request travels with the result of a step, so that every rank saves after the same one. Where the
memory has no room for a snapshot, training waits for each save (blocking.py), and that is logged. main_rank.py: what rank 0 does besides.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from trainer.checkpoint.commit import Began, CommitPlan, SaveResult
from trainer.checkpoint.context import CheckpointContext
from trainer.checkpoint.format.manifest import Manifest
from trainer.checkpoint.format.store import CheckpointStore
from trainer.checkpoint.format.tensor_names import first_not_finite, moments
from trainer.checkpoint.mirror.worker import mirror_settings
from trainer.checkpoint.save.blocking import BlockingSaves
from trainer.checkpoint.save.forecast import Course
from trainer.checkpoint.save.gathering import Gathering
from trainer.checkpoint.save.main_rank import MainRank, SavedBy, schedule_of
from trainer.checkpoint.save.room import Room
from trainer.checkpoint.save.schedule import BY_BUDGET, WAITED_FOR
from trainer.checkpoint.save.status import Report, SaveFailures, SaveStatus
from trainer.checkpoint.save.writer_client import WriterClient, begin_writer
from trainer.config.schema import CheckpointConfig
from trainer.errors import CheckpointError
from trainer.step_result import SaveRequest


class Checkpointer:
    """Saves one run. Every method is called on every rank; rank 0 decides and everyone is told."""

    def __init__(
        self,
        context: CheckpointContext,
        settings: CheckpointConfig,
        course: Course,
        *,
        before_commit: Callable[[], None],
        report: Report,
    ) -> None:
        """`before_commit` makes the metrics durable, where this process commits; `report` is given each checkpoint's step, and numbers by tag."""
        self._context, self._ranks, self._settings, self._course = context, context.ranks, settings, course
        self._plan = CommitPlan(
            folder=context.store.folder,
            run_folder=context.run_folder,
            metrics_file=context.metrics_file,
            marker=context.marker,
            policy=context.policy,
            mirror=mirror_settings(settings, context.store.folder.name),
        )
        self._blocking, self._gathering = BlockingSaves(context, self._plan, before_commit), Gathering(context)
        self._room = Room(context, settings, course)
        self._report, self._failures = report, SaveFailures(context.store.folder, settings.max_failures)
        self._main: MainRank | None = None
        self._saved_step: int | None = None
        self._resumed_step: int | None = None

    @property
    def store(self) -> CheckpointStore:
        """The folder of the run's checkpoints."""
        return self._context.store

    @property
    def writer(self) -> WriterClient | None:
        """Rank 0's side of the writer; None on other ranks, and where training waits for saves."""
        return self._main.writer if self._main else None

    def check_room(self, resumed: Path | None = None) -> None:
        """Proves before the first step that the disk takes what the kept checkpoints, one of them `resumed`, and one in flight will need."""
        self._ranks.broadcast_from_main(lambda: self._room.check([resumed.name] if resumed else []))

    def begin(self, resumed_step: int | None) -> None:
        """Allocates the slots and starts the writer, once the run stands where it begins."""
        self._saved_step = self._resumed_step = resumed_step
        if self._ranks.is_main:
            all_gather, slot_bytes = self._gathering.begin, self._room.slot_bytes()
            writer = begin_writer(self._context, self._settings, self._plan, slot_bytes, all_gather=all_gather)
            schedule = schedule_of(self._context, self._settings, has_snapshots=writer is not None)
            status = SaveStatus(self._context, self._room, schedule, self._failures, self._report)
            self._main = MainRank(self._context, writer, status)

    def due(self) -> str | None:
        """The reason to save at this step, by the step alone; the same on every rank. None when there is none."""
        step, settings = self._context.state.progress.step, self._settings
        if self.ended_epoch() is not None and settings.keep_epochs:
            return "epoch"
        if settings.keep_every_steps and step % settings.keep_every_steps == 0:
            return "every"
        return "periodic" if settings.every_steps and step % settings.every_steps == 0 else None

    def ended_epoch(self) -> int | None:
        """The epoch that the last step ended, counted from 1; None when it ended within one."""
        sequences, epoch = self._context.state.progress.sequences, self._course.sequences_per_epoch
        began = self._context.state.began_at  # data may have been stepped over
        now = sequences // epoch
        before = (sequences - self._course.global_batch if began is None else began) // epoch
        return now if now > before else None

    def save_request(self, tokens: int) -> SaveRequest:
        """What rank 0's clock asks for after the step with which the run will have trained on so many tokens; the ranks answer once all have
        read it. On other ranks: nothing."""
        return self._main.save_request(tokens) if self._main else SaveRequest.NONE

    def acknowledge(self) -> None:
        """Every rank has read the request; it is met, or not: weights in doubt are not saved."""
        if self._main:
            self._main.acknowledge()

    def stepped(self, seconds: float) -> None:
        """A step took so long, without the saves and evaluations after it; called on rank 0."""
        assert self._main is not None, "rank 0 measures steps, once it has begun"
        self._main.status.schedule.stepped(seconds)

    # Saving

    def save(self, reason: str, *, loss: float | None, val_loss: float | None, pinned: bool = False) -> str | None:
        """Saves this moment, if that was not done; a final or an interrupt save is on the disk when this returns.

        Returns, on every rank, the tensor whose numbers are not finite, where that is known and the reason that there is no checkpoint.

        reason  `final`, `interrupt`, `best`, `asked`, one of `due`, `budget` for a write that was requested, `snapshot` for memory only
        raises  CheckpointError on every rank when a final or an interrupt save fails
        """
        step = self._context.state.progress.step
        if self._saved_step == step:
            return None
        began, not_finite = Began(), None
        manifest = self._context.manifest(reason, loss=loss, val_loss=val_loss, epoch=self.ended_epoch())
        manifest = replace(manifest, pinned=pinned)
        by = self._ranks.broadcast_from_main(lambda: SavedBy.ALL_RANKS if self.writer is None else SavedBy.WRITER)
        if by is SavedBy.WRITER:
            by, not_finite = self._snapshot(manifest, began)
        is_saved = by is SavedBy.WRITER
        if by is SavedBy.ALL_RANKS and reason != "snapshot":
            result = self._save_blocking(manifest, began)
            is_saved, not_finite = not result.failure, result.not_finite
        if is_saved:
            self._saved_step = step
        return not_finite

    def has_saved(self, step: int) -> bool:
        """Whether this step is on the disk, or on its way there; the same on every rank."""
        return self._saved_step == step

    def save_seconds(self) -> float:
        """What a save that is waited for takes, as far as it was measured; on rank 0."""
        costs = self._main.status.schedule.costs if self._main else None
        return costs.stall_seconds + costs.write_seconds if costs else 0.0

    def _snapshot(self, manifest: Manifest, began: Began) -> tuple[SavedBy, str | None]:
        """Hands this moment to the writer; who saves it, on every rank, and a tensor that kept it from being written."""
        context, main = self._context, self._main
        state, text = context.state.state_dict(), context.description.config_text
        own = context.layout.small_files(context.accelerator, state, text)
        small = {name: content for of_rank in self._ranks.all_gather(own) for name, content in of_rank.items()}
        if main:
            by = self._gathering.lead(lambda: main.take(manifest, small, began))
        else:
            by = SavedBy.WRITER
            self._gathering.follow()
        if manifest.reason in BY_BUDGET:
            return SavedBy.WRITER, None
        if manifest.reason not in WAITED_FOR:
            return self._ranks.broadcast_from_main(lambda: by), None
        # Where no writer is left to do it, all ranks do it themselves.
        return self._ranks.broadcast_from_main(lambda: main.wait_for(manifest.step, by) if main else (by, None))

    def _save_blocking(self, manifest: Manifest, began: Began) -> SaveResult:
        """Saves while training waits; what came of it. raises CheckpointError when a waited-for save failed"""
        model = self._context.model
        tensors = (*model.named_parameters(), *moments(model, self._context.optimizer))
        not_finite = self._ranks.first_failure(first_not_finite(tensors))
        result = self._blocking.leave_out(manifest, not_finite) if not_finite else self._blocking.save(manifest)
        if self._main:
            self._main.saved_blocking(result, began.spent()[0], manifest.tokens)
        if result.failure and manifest.reason in WAITED_FOR:
            raise CheckpointError(self._failures.text(manifest.step, result.failure))
        return result

    # What came of it

    def before_update(self) -> None:
        """Called before each optimizer step: weights that are being copied must not change under the copy."""
        if self.writer is not None:
            self.writer.settle()

    def give_up(self) -> None:
        """Ends the run on every rank, because too many saves in a row have failed. raises CheckpointError"""

        def give_reason() -> None:
            raise CheckpointError(self._failures.gave_up)

        self._ranks.broadcast_from_main(give_reason)

    def leave_diverged(self, first_unsure: int, *, whole_run: bool = False) -> None:
        """Sets aside what was saved from this step on, in memory and on the disk, because the run has diverged: by this launch, or by all."""
        if self._main:
            self._main.leave_diverged(first_unsure, None if whole_run else self._resumed_step)

    def close(self) -> None:
        """Waits until everything that was promised is on the disk."""
        if self._main:
            self._main.close()

    def end(self, *, wait_for_copies: bool) -> None:
        """Lets the writer go, which commits the newest snapshot that is not on the disk; nothing can be saved after it."""
        if self.writer is not None:
            self.writer.end(wait_for_copies=wait_for_copies)
        self._blocking.end(wait_for_copies=wait_for_copies)
