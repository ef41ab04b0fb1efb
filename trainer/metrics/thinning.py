"""A curve as trackers draw it: every step while the run is young, then ever fewer points, and never more than some 100,000 of a tag.

From step 20,000 on successive steps are drawn as one point, as many as a ten-thousandth of the steps before them: the mean of each tag,
and of EXTREMES the least and the greatest. A tag that only one of these steps has, as an evaluation's or a save's, is drawn as it is, at
its own step; and so is the whole of a step at which something happened: one whose loss or gradient was not finite, or that proved a resume.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.metrics.tags import EXTREMES, drawn, is_counter

DENSE_STEPS = 10_000
"""Steps of the run that are drawn as one point are at most a DENSE_STEPS-th of those before them."""

Point = tuple[int, dict[str, float]]
"""A step, and numbers by tag."""


def width(step: int) -> int:
    """How many steps from this one on are drawn as one point."""
    return max(1, step // DENSE_STEPS)


def stands_alone(record: Mapping[str, Any]) -> bool:
    """Whether something happened that is drawn as it is."""
    is_unfinite = "loss" in record and (record["loss"] is None or record.get("grad_norm", 0.0) is None)
    return is_unfinite or "resume/exact" in record


@dataclass
class _Tag:
    """The numbers that a tag had."""

    count: int = 0
    total: float = 0.0
    least: float = math.inf
    greatest: float = -math.inf
    last: float = math.nan
    step: int = 0

    def add(self, step: int, value: float) -> None:
        self.last, self.step = value, step
        if math.isfinite(value):
            self.count += 1
            self.total += value
            self.least, self.greatest = min(self.least, value), max(self.greatest, value)


class Thinning:
    """Takes a curve's records one after another, and gives back the points that are drawn of them, in the order of their steps."""

    def __init__(self) -> None:
        self._tags: dict[str, _Tag] = {}
        self._first: int | None = None
        self._last = 0
        self._alone_at = -1

    @property
    def is_empty(self) -> bool:
        """Whether everything that was taken was given back."""
        return self._first is None

    def is_over(self, step: int) -> bool:
        """Whether all that was taken is whole, once a record of this step comes."""
        return self._first is None or step >= self._first + width(self._first)

    def add(self, record: Mapping[str, Any]) -> list[Point]:
        """Takes the next record."""
        step, values = record["step"], drawn(record)
        # What happens all the time has no more points than anything else.
        if stands_alone(record) and step - self._alone_at >= width(step):
            self._alone_at = step
            return [*self.flush(), (step, values)]
        points = self.flush() if self.is_over(step) else []
        self._first, self._last = step if self._first is None else self._first, step
        for tag, value in values.items():
            self._tags.setdefault(tag, _Tag()).add(step, value)
        return points + self.flush() if width(self._first) == 1 else points

    def flush(self) -> list[Point]:
        """The points of what was taken and not given back yet."""
        points: dict[int, dict[str, float]] = {}
        for tag, found in self._tags.items():
            if found.count <= 1:
                points.setdefault(found.step, {})[tag] = found.total if found.count else found.last
                continue
            at_end = points.setdefault(self._last, {})
            at_end[tag] = found.last if is_counter(tag) else found.total / found.count
            if tag in EXTREMES:
                at_end[f"{tag}_min"], at_end[f"{tag}_max"] = found.least, found.greatest
        self._tags, self._first = {}, None
        return sorted(points.items(), key=lambda point: point[0])
