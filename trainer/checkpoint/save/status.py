"""What came of the saves of a run: counted, logged and reported, on rank 0."""

import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from trainer.checkpoint.commit import SaveResult
from trainer.checkpoint.context import CheckpointContext
from trainer.checkpoint.format.manifest import Manifest
from trainer.checkpoint.save.room import Room
from trainer.checkpoint.save.schedule import WAITED_FOR, SaveSchedule
from trainer.text import duration, one_line, size

log = logging.getLogger(__name__)

STILL_SECONDS = 60.0
"""A writer that has not moved for so long is not waited for by any save of a run that goes on; it may come back."""

LOGGED_SECONDS = 300.0
"""How often a checkpoint is logged at most, unless there is a reason to log one in any case; the journal has them all."""

NOTICE_SECONDS = 60.0
"""How often it is logged what is waited for."""

Report = Callable[[int, dict[str, float]], None]
"""Is given a step, and numbers by tag."""


class WaitNotice:
    """Logs now and then what is waited for, so that nobody takes it for a hang."""

    def __init__(self, what: str) -> None:
        self._what, self._began = what, time.monotonic()
        self._count = 0

    def log_if_due(self) -> None:
        seconds = time.monotonic() - self._began
        if seconds // NOTICE_SECONDS > self._count:
            self._count = int(seconds // NOTICE_SECONDS)
            log.info("%s (for %s by now)", self._what, duration(seconds))


class LogThrottle:
    """Which of the many checkpoints the log names."""

    def __init__(self) -> None:
        self._logged_at: float | None = None
        self._num_left_out = 0

    def line(self, result: SaveResult, *, seconds: float, now: float, in_any_case: bool) -> str | None:
        """What the log says of a checkpoint that is on the disk now, `seconds` after its moment; None when it need not be logged."""
        if self._logged_at is not None and now - self._logged_at < LOGGED_SECONDS and not in_any_case:
            self._num_left_out += 1
            return None
        others = f" ({self._num_left_out} more since the one logged last)" if self._num_left_out else ""
        self._logged_at, self._num_left_out = now, 0
        took = f"{size(result.num_bytes)} in {duration(seconds)}"
        return f"step {result.step}: checkpoint ({result.reason}), {took}{others}"


class SaveFailures:
    """The saves of one run that made no checkpoint: those that the disk failed end the run when they are too many in a row."""

    def __init__(self, folder: Path, max_in_a_row: int) -> None:
        """`folder`: of the checkpoints."""
        self._folder, self._max_in_a_row = folder, max_in_a_row
        self.in_a_row = 0
        self.gave_up: str | None = None
        """Why the run is to end, in a paragraph; None: it goes on."""
        self._num_not_finite = 0

    def failed(self, result: SaveResult, failure: str) -> None:
        """The disk did not take it. Whoever waited for it raises an error; others are logged here."""
        self.in_a_row += 1
        if self.in_a_row >= self._max_in_a_row:
            self.gave_up = self.text(result.step, failure)
        elif result.reason not in WAITED_FOR:
            log.warning(
                f"the checkpoint of step {result.step} could not be written to {self._folder} ({failure}); training goes on, and "
                f"the next save tries again ({self.in_a_row} of {self._max_in_a_row})"
            )

    def not_finite(self, result: SaveResult) -> None:
        """It would have held numbers that are not finite."""
        self._num_not_finite += 1
        if self._num_not_finite.bit_count() == 1:
            stays = f"the one before it stays the newest ({self._num_not_finite} left out so by now)"
            why = f"because {result.not_finite} is not finite"
            log.warning(f"step {result.step}: no checkpoint ({result.reason}), {why}; {stays}")

    def text(self, step: int, failure: str) -> str:
        """What a person reads of a failure, in a paragraph."""
        row = f", failure {self.in_a_row} in a row" if self.in_a_row > 1 else ""
        return (
            f"the checkpoint of step {step} could not be written to {self._folder} ({failure}){row}; the checkpoints before it are "
            "whole: make room or fix the disk, then start again with resume_from_checkpoint=latest"
        )


class SaveStatus:
    """What is known of the saves so far, and of the writer."""

    def __init__(
        self, context: CheckpointContext, room: Room, schedule: SaveSchedule, failures: SaveFailures, report: Report
    ) -> None:
        self._context, self._room, self.schedule, self.failures = context, room, schedule, failures
        self._report, self._throttle = report, LogThrottle()
        self.taken_at: dict[int, float] = {}
        """The moments, in monotonic seconds, of the snapshots that are to be written, by step."""
        self.is_still = False
        """Whether the writer stands still."""
        self._num_untidy = self._num_skipped = 0

    def take_in(self, results: Iterable[SaveResult], *, is_last: bool) -> None:
        """Takes in what was written, or failed to be; `is_last`: nothing else is under way."""
        for result in results:
            self.untidy(result.untidy)
            if result.failure or result.not_finite:
                self._made_nothing(result)
            else:
                self._made(result, is_last=is_last)

    def _made(self, result: SaveResult, *, is_last: bool) -> None:
        in_any_case, self.failures.in_a_row = result.reason in WAITED_FOR or self.failures.in_a_row > 0, 0
        now = time.monotonic()
        moment = self.taken_at.pop(result.step, now)
        self.schedule.write_committed(now, result.seconds, result.cpu_seconds, moment, is_last=is_last)
        if line := self._throttle.line(result, seconds=now - moment, now=now, in_any_case=in_any_case):
            log.info(line)
        costs = {**self.schedule.written(result.seconds), **self.schedule.promise(now)}
        try:
            self._room.look(now)
            days = self._room.days_until_full(result.num_bytes, self.schedule.costs)
            costs |= {} if days is None else {"disk/days_until_full": days}
        except OSError as error:
            self.untidy([f"looking at the free space: {one_line(error)}"])
        self._report(result.step, {"checkpoint/bytes": float(result.num_bytes), **costs})
        news, progress = self.schedule.news(), self._context.state.progress
        plan, costs_now = self.schedule.plan, self.schedule.costs
        forecast = self._room.forecast(result.num_bytes, progress, plan, costs_now, anew=news is not None)
        for sentence in [*([news] if news else []), *forecast]:
            log.info("saves: %s", sentence)

    def _made_nothing(self, result: SaveResult) -> None:
        self.schedule.write_failed(result.cpu_seconds)
        self.taken_at.pop(result.step, None)
        if result.not_finite:
            self.failures.not_finite(result)
        elif result.failure:
            self.failures.failed(result, result.failure)

    def left_out(self, manifest: Manifest) -> None:
        """The disk is behind: a save that only the budget asked for is left out, and any while the writer stands still."""
        if manifest.reason == "snapshot":
            return  # its turn comes with the next free slot
        self._num_skipped += 1
        skipped = {"checkpoint/skipped_saves": float(self._num_skipped)}
        self._report(manifest.step, {**skipped, **self.schedule.promise(time.monotonic())})
        if self._num_skipped.bit_count() == 1:
            self._context.journal.write("skip", step=manifest.step, reason=manifest.reason, number=self._num_skipped)
            why = f"because the disk is still busy with earlier ones ({self._num_skipped} left out by now)"
            log.warning(f"step {manifest.step}: no checkpoint ({manifest.reason}), {why}")

    def look_at_writer(self, still_seconds: float) -> None:
        """Logs with figures when the writer stands still, and when it moves again."""
        if (still_seconds > STILL_SECONDS) == self.is_still:
            return
        self.is_still = not self.is_still
        self._context.journal.write("writer", state="still" if self.is_still else "moves")
        if not self.is_still:
            log.info("the writer moves again; saves are made as before (%d left out by now)", self._num_skipped)
            return
        now = time.monotonic()
        self._report(self._context.state.progress.step, self.schedule.promise(now))
        log.warning(
            f"the writer has moved nothing for {duration(still_seconds)}: does the disk of {self._context.store.folder} hang? "
            "Training goes on and saves are left out meanwhile; if the machine died now, "
            f"{duration(self.schedule.meter.lost_work_seconds(now))} of training would be lost"
        )

    def writer_lost(self, reason: str) -> None:
        """There is no writer any more: what it was to write is lost, and training waits for the saves that follow."""
        journal = self._context.journal
        log.warning("saves: training waits for them from here on, because %s", reason)
        for step in sorted(self.taken_at):
            journal.write("save_failed", step=step, reason="writer", failure=reason)
            log.warning("step %d: its checkpoint is lost with the writer", step)
        self.taken_at.clear()
        journal.write("writer", state="done without", reason=reason)
        self.schedule.writer_lost()

    def untidy(self, failures: Iterable[str]) -> None:
        """Counts and logs what failed beside a save; every checkpoint is whole without it."""
        folder = self._context.store.folder
        for failure in failures:
            self._num_untidy += 1
            log.warning("tidying %s failed: %s (%d times by now)", folder, failure, self._num_untidy)
