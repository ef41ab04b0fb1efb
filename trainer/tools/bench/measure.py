"""What the launches of one variant left in their curves, as figures. Pure: records come in, as metrics.jsonl has them."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.tools.bench.choose import Variant

WARM_UP_STEPS = 5
"""The first steps of a launch are not timed: memory is found, clocks rise, libraries choose their kernels."""

PEAKS = ("memory/peak_bytes", "memory/peak_resident_bytes")
"""The most memory of rank 0's process: on its GPU, or in the machine where it computes on a CPU."""

UNSTEADY = 0.1
"""Where rounds are further apart little can be believed: that is reported, and the result is not kept for `auto`."""

Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Measurement:
    """One variant, over its rounds."""

    variant: Variant
    step_seconds: float
    """The mean of the rounds' medians."""
    spread: float
    """How far the rounds' own medians are apart, as a fraction of it."""
    tokens_per_second: float
    mfu: float | None
    """None where the peak of the device is not known."""
    peak_bytes: float | None
    """None where no launch lasted until memory was looked at for the second time."""
    loss_gap: float | None
    """The mean loss of the last third of the steps over that of bf16's same steps, minus 1; None without bf16's."""
    has_run_away: bool
    """Whether a loss is not finite, or the gap is more than precision.max_loss_gap."""


def measurement(
    variant: Variant, rounds: Sequence[Records], reference: Records | None, *, tokens_a_step: int, max_loss_gap: float
) -> Measurement:
    """The figures of a variant from the steps of each round; every round has more than WARM_UP_STEPS.

    reference   the steps of bf16's first round; None where it has none
    """
    timed = [[record["step_seconds"] for record in steps[WARM_UP_STEPS:]] for steps in rounds]
    medians = [statistics.median(seconds) for seconds in timed]
    middle = statistics.mean(medians)
    mfus = [record["mfu"] for steps in rounds for record in steps[WARM_UP_STEPS:] if "mfu" in record]
    # The first look at memory comes before the first step, when there are no moments yet.
    peaks = [peak for steps in rounds for peak in peaks_of(steps)[1:]]
    losses = [[record["loss"] for record in steps] for steps in rounds]
    gap = None if reference is None else loss_gap(losses[0], [record["loss"] for record in reference])
    is_finite = all(loss is not None for of_round in losses for loss in of_round)
    has_run_away = not is_finite or not (gap is None or (math.isfinite(gap) and gap <= max_loss_gap))
    spread, mfu = (max(medians) - min(medians)) / middle, statistics.median(mfus) if mfus else None
    peak = max(peaks, default=None)
    return Measurement(variant, middle, spread, tokens_a_step / middle, mfu, peak, gap, has_run_away)


def peaks_of(steps: Records) -> list[float]:
    """The peaks of memory that stand in these records, in their order."""
    return [record[tag] for record in steps for tag in PEAKS if tag in record]


def loss_gap(ours: Sequence[float | None], theirs: Sequence[float | None]) -> float:
    """The mean loss of the last third of the steps that both have over the other's, minus 1; infinite where one is not finite."""
    common = list(zip(ours, theirs, strict=False))
    last = common[-max(1, len(common) // 3) :]
    our_sum = their_sum = 0.0
    for our, their in last:
        if our is None or their is None:
            return math.inf
        our_sum, their_sum = our_sum + our, their_sum + their
    return our_sum / their_sum - 1
