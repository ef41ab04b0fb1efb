"""The batch of a skipped step computed once more, before the next update: other numbers are a broken chip's, the same are the data's.

Nothing of it stays: the random streams are put back, and the step that was about to be taken is computed anew from where it began.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from trainer.collectives import all_gather
from trainer.data.loader import Batch
from trainer.journal import Journal
from trainer.step_result import StepResult, Verdict
from trainer.text import shortened

log = logging.getLogger(__name__)

Gradients = Callable[[Batch], tuple[torch.Tensor, torch.Tensor]]
"""Forward, backward and clipping of a batch: this rank's mean loss, and the gradient's norm, both on the device."""


@dataclass
class _Step:
    """What is kept of a step until its result is known."""

    batch: Batch
    streams: tuple[torch.Tensor, ...]
    """The random streams of torch as it began."""
    loss: torch.Tensor | None = None
    grad_norm: torch.Tensor | None = None


class Recheck:
    """Keeps the last two steps, of which the results may not be known yet."""

    def __init__(self, device: torch.device, journal: Journal | None, unable: Callable[[], str | None]) -> None:
        """`unable` says why nothing can be computed again to the last bit, or None; `journal` is rank 0's."""
        self._device, self._journal, self._unable = device, journal, unable
        self._steps: dict[int, _Step] = {}
        self._was_told = False

    def begin(self, step: int, batch: Batch) -> None:
        """Keeps how a step begins, before anything of it is computed."""
        self._steps = {number: kept for number, kept in self._steps.items() if number >= step - 1}
        self._steps[step] = _Step(batch, self._streams())

    def computed(self, step: int, loss: torch.Tensor, grad_norm: torch.Tensor) -> None:
        """Keeps what came of it: this rank's loss, and the norm of all."""
        self._steps[step].loss, self._steps[step].grad_norm = loss, grad_norm

    def note(self, result: StepResult, skipped: bool, ids: Callable[[int], list[int]]) -> None:
        """Writes down which data a bad step had, on rank 0; `ids` gives the sequences of the batch that begins at a position."""
        if self._journal is None:
            return
        batch = self._steps[result.step].batch
        self._journal.write(
            "bad_batch",
            step=result.step,
            kind="spike" if result.verdict == Verdict.SPIKE else "not finite",
            skipped=skipped,
            loss=result.loss,
            grad_norm=result.grad_norm,
            score=result.score,
            first_sequence=batch.first_sequence,
            sequences=ids(batch.first_sequence),
        )

    def repeat(self, skipped: StepResult, zero_grad: Callable[[], None], gradients: Gradients) -> bool:
        """Computes a skipped step again, compares, says what it shows, and puts the random streams back to where the step after it began.

        The gradients of the step after it are lost by it; False where nothing was done. Called on every rank.
        """
        before, now = self._steps.get(skipped.step), self._steps.get(skipped.step + 1)
        if before is None or now is None:  # it was the last one of another launch
            return False
        if why := self._unable():
            if not self._was_told:
                log.warning(f"the skipped batch of step {skipped.step} is not computed again: {why}")
            self._was_told = True
            return False
        zero_grad()
        self._put_back(before.streams)
        loss, grad_norm = gradients(before.batch)
        equal = _equal_bits(loss, before.loss), _equal_bits(grad_norm, before.grad_norm)
        zero_grad()
        self._put_back(now.streams)
        self._say(skipped.step, all_gather(equal))
        return True

    def _say(self, step: int, equal: list[tuple[bool, bool]]) -> None:
        """`equal` has, for each rank, whether its own loss was the same, and whether the norm of all was."""
        ranks = [rank for rank, (has_loss, _) in enumerate(equal) if not has_loss]
        is_equal = all(all(pair) for pair in equal)
        if self._journal is not None:
            self._journal.write("recompute", step=step, equal=is_equal, ranks=ranks)
        if is_equal:
            log.warning(
                f"step {step}: computed again, its batch gives the same numbers to the last bit: it is the data"
            )
            return
        whose = f"on rank {shortened(', '.join(map(str, ranks)))}" if ranks else "on a rank that is not known"
        log.error(
            f"step {step}: computed again, its batch gives other numbers {whose}: a chip or its memory computes wrongly; the update was skipped, so "
            "the weights are as they were. Have that device tested, and take it out of the run"
        )

    def _streams(self) -> tuple[torch.Tensor, ...]:
        own = (torch.get_rng_state(),)
        return (*own, torch.cuda.get_rng_state(self._device)) if self._device.type == "cuda" else own

    def _put_back(self, streams: tuple[torch.Tensor, ...]) -> None:
        torch.set_rng_state(streams[0])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(streams[1], self._device)


def _equal_bits(one: torch.Tensor, other: torch.Tensor | None) -> bool:
    """Whether two numbers are the same; what is not a number is the same as what is none either."""
    return other is not None and torch.equal(torch.nan_to_num(one), torch.nan_to_num(other))
