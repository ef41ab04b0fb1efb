"""Numbers that every step has beside its core ones, written down at a cadence of their own: what is between is in their mean."""

import math
from collections.abc import Mapping

FEWEST_STEPS = 10
"""Steps between two looks at the details of a run that is not long."""
MOST_LOOKS = 100_000
"""Looks at the details of the longest run."""


def detail_interval(every_steps: int | None, max_steps: int) -> int:
    """Steps between two looks at the details: what was asked for, or a hundred-thousandth of the run and at least 10; 0 for none."""
    return max(FEWEST_STEPS, math.ceil(max_steps / MOST_LOOKS)) if every_steps is None else every_steps


class Details:
    """Gathers numbers by tag over the steps between two looks. A tag that few steps have is a mean over those."""

    def __init__(self, every_steps: int) -> None:
        """`every_steps` of 0 asks for no further details: those that every step has anyway come at the default's cadence."""
        self._every_steps = every_steps or FEWEST_STEPS
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._before: dict[str, float] = {}
        self._is_first = True

    def add(self, values: Mapping[str, float]) -> None:
        """Takes numbers of the next step of which a mean is wanted."""
        for tag, value in values.items():
            self._sums[tag] = self._sums.get(tag, 0.0) + value
            self._counts[tag] = self._counts.get(tag, 0) + 1

    def is_due(self, step: int) -> bool:
        """Whether this step has a look at the details: one at the cadence, and the first of the launch."""
        return self._is_first or step % self._every_steps == 0

    def changed(self, values: Mapping[str, float], step: int) -> dict[str, float]:
        """Those of a step's numbers that are not what the step before had; at a look, all. What is measured now and then counts each time."""
        is_due, before, self._before = self.is_due(step), self._before, dict(values)
        return {tag: value for tag, value in values.items() if is_due or before.get(tag) != value}

    def take(self, step: int) -> dict[str, float]:
        """The means since the last look, where this step has one; it is over then."""
        if not self.is_due(step):
            return {}
        means = {tag: total / self._counts[tag] for tag, total in self._sums.items()}
        self._sums, self._counts, self._is_first = {}, {}, False
        return means
