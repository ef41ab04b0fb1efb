"""Saves that came to nothing: those that the disk failed are counted until it is enough; those that are not worth it are told."""

import logging
from pathlib import Path

from trainer.checkpoint.commit import SaveResult

log = logging.getLogger(__name__)


class SaveFailures:
    """What became of the saves of one run that made no checkpoint."""

    def __init__(self, folder: Path, max_in_a_row: int) -> None:
        """`folder`: of the checkpoints."""
        self._folder, self._max_in_a_row = folder, max_in_a_row
        self.in_a_row = 0
        self.gave_up: str | None = None
        """Why the run is to end, in a paragraph; None: it goes on."""
        self._num_not_finite = 0

    def failed(self, done: SaveResult, *, is_waited_for: bool) -> None:
        """The disk did not take it. Whoever waited says so; of another it is told here."""
        self.in_a_row += 1
        if self.in_a_row >= self._max_in_a_row:
            self.gave_up = self.text(done.step, done.failure)
        elif not is_waited_for:
            log.warning(
                "the checkpoint of step %d could not be written to %s (%s); training goes on, and the next save tries again (%d of %d)",
                done.step,
                self._folder,
                done.failure,
                self.in_a_row,
                self._max_in_a_row,
            )

    def not_finite(self, done: SaveResult) -> None:
        """It would have held numbers that are not finite."""
        self._num_not_finite += 1
        if self._num_not_finite.bit_count() == 1:
            log.warning(
                "step %d: no checkpoint (%s), because %s is not finite; the one before it stays the newest (%d left out so by now)",
                done.step,
                done.reason,
                done.not_finite,
                self._num_not_finite,
            )

    def text(self, step: int, failure: str) -> str:
        """What a person reads of a failure, in a paragraph."""
        row = f", the {self.in_a_row}. failure in a row" if self.in_a_row > 1 else ""
        return (
            f"the checkpoint of step {step} could not be written to {self._folder} ({failure}){row}; the checkpoints before it are "
            "whole: make room or fix the disk, then start again with resume_from_checkpoint=latest"
        )
