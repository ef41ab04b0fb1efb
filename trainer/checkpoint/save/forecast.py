"""What the saves that are still to come will write, and when the disk will be full: from the settings, measured costs and looks at the disk."""

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from trainer.config.schema import CheckpointConfig
from trainer.text import duration, size

DAY_SECONDS = 86400.0

CLOCK, FINAL = "the clock", "the last step"


@dataclass(frozen=True, kw_only=True)
class Course:
    """What a run is to take."""

    max_steps: int
    global_batch: int
    sequences_per_epoch: int
    evaluation_every_steps: int | None
    """Between two validation losses; None where there is none."""


@dataclass(frozen=True, kw_only=True)
class Ahead(Course):
    """The part of it that is still to come."""

    step: int
    """Where it begins: steps taken by now."""
    sequences: int
    """The position in the data, counted over all epochs."""
    tokens: int
    """Trained on by now."""
    step_seconds: float
    clock_seconds: float
    """Between two saves by the clock; infinity: none."""

    @property
    def steps(self) -> int:
        return self.max_steps - self.step

    @property
    def seconds(self) -> float:
        return self.steps * self.step_seconds


def saves_ahead(settings: CheckpointConfig, ahead: Ahead) -> dict[str, int]:
    """How many checkpoints will be written, by what asks for them; those for a best loss, which nobody can know, not counted.

    What stands at the same step is one save, and counts for the first that asks for it.
    """
    if ahead.steps <= 0:
        return {}
    counts: dict[str, int] = {}
    periods: list[int] = []
    batch = ahead.global_batch
    for name in ("keep_every_steps", "every_steps"):
        if period := getattr(settings, name):
            counts[f"checkpoint.{name}"] = _multiples([*periods, period], ahead) - _multiples(periods, ahead)
            periods.append(period)
    if settings.keep_epochs:
        counts["checkpoint.keep_epochs"] = _crossings(ahead.sequences, batch, ahead.sequences_per_epoch, ahead.steps)
    if settings.every_tokens and ahead.sequences:
        step_tokens = ahead.tokens * batch // ahead.sequences
        counts["checkpoint.every_tokens"] = _crossings(ahead.tokens, step_tokens, settings.every_tokens, ahead.steps)
    if not any(ahead.max_steps % period == 0 for period in periods):
        counts[FINAL] = 1
    by_step = max(1, sum(counts.values()))
    clock = min(ahead.clock_seconds, 60 * (settings.every_minutes or math.inf))
    if not math.isinf(clock):  # it begins anew with each save, and fills the gaps between the others
        counts[CLOCK] = by_step * (math.ceil(ahead.seconds / by_step / clock - 1e-9) - 1)
    return {cause: number for cause, number in counts.items() if number > 0}


def best_ahead(settings: CheckpointConfig, ahead: Ahead) -> int:
    """How many more there can be at most for a best validation loss, at evaluations that nothing else is saved at."""
    if not (settings.keep_best and ahead.evaluation_every_steps):
        return 0
    periods = [period for period in (settings.keep_every_steps, settings.every_steps) if period]
    return _multiples([*periods, ahead.evaluation_every_steps], ahead) - _multiples(periods, ahead)


def _multiples(periods: Sequence[int], ahead: Ahead) -> int:
    """How many of the steps to come are a multiple of at least one period, by inclusion and exclusion."""
    total = 0
    for number in range(1, len(periods) + 1):
        for chosen in combinations(periods, number):
            period = math.lcm(*chosen)
            total -= (-1) ** number * (ahead.max_steps // period - ahead.step // period)
    return total


def _crossings(begin: int, each: int, every: int, steps: int) -> int:
    """How many of so many steps, each of which moves on by `each`, reach or pass a multiple of `every`."""
    return min(steps, (begin + steps * each) // every - begin // every)


def written_sentence(checkpoint_bytes: int, counts: Mapping[str, int], num_best: int, remaining_seconds: float) -> str:
    """What the run writes until it ends, and in a day: SSDs are rated by it."""
    number = sum(counts.values())
    in_all = number * checkpoint_bytes
    what = "1 checkpoint" if number == 1 else f"{number:,} checkpoints"
    causes = ", ".join(f"{each:,} by {cause}" for cause, each in counts.items())
    best = f", and up to {num_best:,} more for a best validation loss" if num_best else ""
    a_day = f", {size(in_all * DAY_SECONDS / remaining_seconds)} a day" if remaining_seconds > DAY_SECONDS else ""
    return (
        f"until the run ends in {duration(remaining_seconds)} about {what} of {size(checkpoint_bytes)} will be written ({causes}{best}): "
        f"{size(in_all)}{a_day}"
    )


class FreeSpace:
    """The trend of free bytes, from looks at the disk during the run."""

    SPACING_SECONDS = 300.0
    MIN_SAMPLES = 6

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque(maxlen=48)

    def look(self, now: float, free_bytes: int) -> None:
        """Notes the free bytes at a moment, in monotonic seconds; looks that follow each other too closely are left out."""
        if not self._samples or now - self._samples[-1][0] >= self.SPACING_SECONDS:
            self._samples.append((now, free_bytes))

    def growth_bytes_a_day(self) -> float | None:
        """What fills the disk, by anyone: the median slope over all pairs of looks (Theil-Sen); None before half an hour of looks.

        A median, because every save makes free bytes go down and every pruning makes them come back.
        """
        if len(self._samples) < self.MIN_SAMPLES:
            return None
        slopes = [(a[1] - b[1]) / (b[0] - a[0]) for a, b in combinations(self._samples, 2)]
        return DAY_SECONDS * statistics.median(slopes)


def permanent_bytes_a_day(checkpoint_bytes: int, step_seconds: float, settings: CheckpointConfig) -> float:
    """What the policy adds for good: checkpoints at multiples of `keep_every_steps` are never pruned, unless a bound on all bytes wants it."""
    if not settings.keep_every_steps or settings.max_disk_bytes is not None or step_seconds <= 0:
        return 0.0
    return checkpoint_bytes * DAY_SECONDS / (settings.keep_every_steps * step_seconds)


def full_sentence(
    free_bytes: int, policy_bytes_a_day: float, measured_bytes_a_day: float | None, remaining_seconds: float
) -> str:
    """When the disk will be full, by the policy and by what was measured, whichever comes first."""
    causes = {"for the checkpoints kept for good": policy_bytes_a_day, "as measured": measured_bytes_a_day or 0.0}
    cause, growth = max(causes.items(), key=lambda item: item[1])
    if growth <= 0:
        return f"{size(free_bytes)} are free on the disk of the checkpoints, and it does not fill"
    days = free_bytes / growth
    lasts = days * DAY_SECONDS >= remaining_seconds
    fate = "after the run ends" if lasts else "before the run ends: make room, or keep fewer"
    return (
        f"{size(free_bytes)} are free on the disk of the checkpoints, and {size(growth)} a day go ({cause}): it is full in "
        f"{duration(days * DAY_SECONDS)}, {fate}"
    )


def days_until_full(free_bytes: int, policy_bytes_a_day: float, measured_bytes_a_day: float | None) -> float | None:
    """In how many days that is; None where it does not fill."""
    growth = max(policy_bytes_a_day, measured_bytes_a_day or 0.0)
    return free_bytes / growth if growth > 0 else None
