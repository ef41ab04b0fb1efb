"""Whether a run has become slow, by the times of its own steps.

Judged are stretches of steps, the shortest that have 20 steps and 60 seconds: the median of the last one against the best median of any
stretch of this launch. So a single slow step, an evaluation or a save does not count, and neither does a run that was never faster. Steps
of another kind (of another precision, or under the profiler) have stretches of their own.
"""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass

MIN_STEPS, MIN_SECONDS = 20, 60.0
"""Least number of steps of a stretch, and least seconds that it lasts."""

OVER_RATIO = 1.5
"""A run is no longer slow once its steps take less than this times the best stretch's."""


@dataclass(frozen=True)
class SpeedChange:
    """A run has become slow, or is no longer."""

    is_slow: bool
    step_seconds: float
    """Median of the last stretch."""
    best_seconds: float
    """Median of the best stretch of this launch."""

    @property
    def ratio(self) -> float:
        return self.step_seconds / self.best_seconds


class SlowdownWatch:
    """Takes the seconds of each step, and says when the run becomes slow and when that is over."""

    def __init__(self, slow_ratio: float | None) -> None:
        """`slow_ratio`: how many times the best stretch's median is slow; None: nothing is."""
        self._slow_ratio = slow_ratio
        self._steps: deque[float] = deque()
        self._sorted: list[float] = []
        self._seconds = 0.0
        self._kind: Hashable = None
        self._best: dict[Hashable, float] = {}
        self._is_slow = False

    @property
    def ratio(self) -> float | None:
        """The last stretch's median over the best one's; None before the first whole stretch of its kind."""
        best = self._best.get(self._kind)
        return None if best is None or not self._steps else self._median() / best

    def step(self, seconds: float, kind: Hashable = None) -> SpeedChange | None:
        """One step took so long; returns what has changed by it. `kind`: what sort of step it is; each is measured by itself."""
        if kind != self._kind:
            self._kind, self._seconds = kind, 0.0
            self._steps.clear()
            self._sorted.clear()
        self._steps.append(seconds)
        insort(self._sorted, seconds)
        self._seconds += seconds
        while len(self._steps) > MIN_STEPS and self._seconds - self._steps[0] >= MIN_SECONDS:
            oldest = self._steps.popleft()
            del self._sorted[bisect_left(self._sorted, oldest)]
            self._seconds -= oldest
        if len(self._steps) < MIN_STEPS or self._seconds < MIN_SECONDS:
            return None
        median = self._median()
        best = self._best[kind] = min(self._best.get(kind, median), median)
        return self._judge(median, best)

    def _judge(self, median: float, best: float) -> SpeedChange | None:
        if self._slow_ratio is None:
            return None
        limit = min(OVER_RATIO, self._slow_ratio) if self._is_slow else self._slow_ratio
        is_slow = median > limit * best
        if is_slow == self._is_slow:
            return None
        self._is_slow = is_slow
        return SpeedChange(is_slow, median, best)

    def _median(self) -> float:
        return self._sorted[len(self._sorted) // 2]
