"""What rank 0 alone does for the saves of a run: asks for them by its clock, takes snapshots, waits for the writer, and goes on without it."""

import logging
import time
from enum import StrEnum

from trainer.checkpoint.commit import Began, SaveResult
from trainer.checkpoint.context import CheckpointContext
from trainer.checkpoint.format.manifest import Manifest
from trainer.checkpoint.resume.diverged import set_diverged_aside
from trainer.checkpoint.save.schedule import BY_BUDGET, WAITED_FOR, Budget, SaveSchedule
from trainer.checkpoint.save.status import SaveStatus, WaitNotice
from trainer.checkpoint.save.writer_client import WriterClient, WriterLost, disk_answers
from trainer.config.schema import CheckpointConfig
from trainer.errors import CheckpointError
from trainer.step_result import SaveRequest
from trainer.text import one_line

log = logging.getLogger(__name__)


class SavedBy(StrEnum):
    """Who saves a moment."""

    WRITER = "the writer, which has its snapshot"
    NOBODY = "nobody: it is left out"
    ALL_RANKS = "all ranks, while training waits"


class MainRank:
    """Rank 0's part of the saves, from the first step on."""

    def __init__(self, context: CheckpointContext, writer: WriterClient | None, status: SaveStatus) -> None:
        self._context, self.writer, self.status = context, writer, status
        self._retired: WriterClient | None = None
        self._requested = SaveRequest.NONE

    # When

    def save_request(self, tokens: int) -> SaveRequest:
        """What the clock asks for after the step that ends at so many tokens, besides what has been asked for and not been read by every rank."""
        self._poll()
        if self.status.failures.gave_up:
            return SaveRequest.GIVE_UP
        if self._requested:
            return SaveRequest.NONE
        now, schedule = time.monotonic(), self.status.schedule
        if schedule.write_due(now, tokens):
            self._requested = SaveRequest.WRITE
        elif self.writer and self.writer.writing is None and schedule.snapshot_due(now):
            # While one slot is being written, a snapshot would go over the newest that is whole.
            self._requested = SaveRequest.SNAPSHOT
        return self._requested

    def acknowledge(self) -> None:
        """Every rank has read the request."""
        self._requested = SaveRequest.NONE

    # Saving

    def take(self, manifest: Manifest, small: dict[str, bytes], began: Began) -> SavedBy:
        """Snapshots into a slot and goes on. Waits for a slot where this very step is wanted."""
        writer, to_write = self.writer, manifest.reason != "snapshot"
        assert writer is not None, "who takes a snapshot has a writer"
        try:
            step = manifest.step
            notice = WaitNotice(f"step {step}: waiting for a slot in memory: the disk is busy with earlier saves")
            while (slot := writer.free_slot()) is None:
                if manifest.reason in BY_BUDGET or (manifest.reason not in WAITED_FOR and self.status.is_still):
                    self.status.left_out(manifest)
                    return SavedBy.NOBODY
                self._take_in(writer.wait())
                self.status.look_at_writer(writer.still_seconds)
                notice.log_if_due()
            writer.take(slot, manifest, small, must_write=to_write)
        except WriterLost as error:
            self._do_without_writer(error)
            return SavedBy.ALL_RANKS
        now = time.monotonic()
        if to_write:
            self.status.taken_at[step] = now
        if manifest.reason not in WAITED_FOR:
            stall = now - began.seconds
            self.status.schedule.snapshot_taken(now, stall, tokens=manifest.tokens, to_write=to_write)
        return SavedBy.WRITER

    def wait_for(self, step: int, by: SavedBy) -> tuple[SavedBy, str | None]:
        """Waits until a step is written: by whom, and a tensor that kept it from being written. raises CheckpointError when it cannot be"""
        failures = self.status.failures
        if by is SavedBy.WRITER and self.writer is not None:
            try:
                result = self.writer.wait_for(step, self._take_in)
                if result.failure:
                    raise CheckpointError(failures.text(step, result.failure))
                return SavedBy.WRITER, result.not_finite
            except WriterLost as error:
                self.status.taken_at.pop(step, None)  # it is written in another way, or that is an error
                self._do_without_writer(error)
        if not disk_answers(self._context.store.folder):
            raise CheckpointError(failures.text(step, "its disk does not answer"))
        return SavedBy.ALL_RANKS, None

    def saved_blocking(self, result: SaveResult, seconds: float, tokens: int) -> None:
        """All ranks have saved a step, or failed to, while training waited."""
        now = time.monotonic()
        self.status.taken_at[result.step] = now - seconds
        self.status.schedule.snapshot_taken(now, seconds, tokens=tokens, to_write=True)
        self._take_in([result])

    def _do_without_writer(self, error: WriterLost) -> None:
        self._retired, self.writer = self.writer, None  # its memory stays: a GPU's copies into it may be under way
        self.status.writer_lost(str(error))

    # What came of it

    def _take_in(self, results: list[SaveResult]) -> None:
        self.status.take_in(results, is_last=self.writer is None or not self.writer.pending())

    def _poll(self) -> None:
        if self.writer is None:
            return
        try:
            self.writer.advance()
            self._take_in(self.writer.poll())
            self.status.look_at_writer(self.writer.still_seconds)
        except WriterLost as error:
            self._do_without_writer(error)

    def leave_diverged(self, first_unsure: int, resumed_step: int | None) -> None:
        """Sets aside what this launch saved from this step on, in memory and on the disk, because the run has diverged."""
        if self.writer is not None:
            self.writer.forget_from(first_unsure)
        self.close()
        try:
            set_diverged_aside(self._context.store, first_unsure, resumed_step, self._context.journal)
        except OSError as error:
            self.status.untidy([f"setting aside what has diverged: {one_line(error)}"])

    def close(self) -> None:
        """Waits until everything that was promised is on the disk."""
        if self.writer is None:
            return
        notice = WaitNotice("waiting for checkpoints to reach the disk")
        try:
            while self.writer.pending():
                self.writer.advance(wait=True)
                self._take_in(self.writer.wait())
                notice.log_if_due()
        except WriterLost as error:
            self._do_without_writer(error)


def schedule_of(context: CheckpointContext, settings: CheckpointConfig, *, has_snapshots: bool) -> SaveSchedule:
    """The schedule of a launch that begins now."""
    budget = Budget(
        settings.max_lost_work_seconds,
        settings.max_overhead_fraction,
        settings.every_minutes,
        settings.every_tokens,
        writer_takes_from_step=context.accelerator.device.type == "cpu",
        has_snapshots=has_snapshots,
    )
    return SaveSchedule(budget, time.monotonic(), context.state.progress.tokens)
