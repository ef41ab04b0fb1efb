"""max_hours: when a launch stops by itself, so early that its last save fits. Rank 0's clock decides, and its vote is every rank's."""

import os
import time
from collections.abc import Mapping

LAUNCHED_AT = "TRAINER_LAUNCHED_AT"
"""The environment variable with the moment at which the launch was started, on the monotonic clock that all processes of a machine share."""

SLACK_SECONDS = 30.0
"""What closing down may take besides the save; at most SLACK_FRACTION of the limit."""
SLACK_FRACTION = 0.05


def launched_at(environment: Mapping[str, str] = os.environ) -> float:
    """When this launch was started; now, where nobody has noted it."""
    return float(environment.get(LAUNCHED_AT, time.monotonic()))


class TimeLimit:
    """Says after each step whether another one, and the save after it, would come too late."""

    def __init__(self, hours: float, began: float) -> None:
        self.hours = hours
        self._ends = began + hours * 3600.0
        self._slack = min(SLACK_SECONDS, SLACK_FRACTION * hours * 3600.0)
        self._num_looks, self._looked_at, self._longest = 0, began, 0.0

    def is_near(self, now: float, save_seconds: float = 0.0) -> bool:
        """Whether the launch has to stop; called before the first step, and after each.

        The longest time between two looks in this launch stands for the next step with the evaluation and the save that may follow it. It is
        counted twice, since on a GPU the ranks read a vote one step late. What the first step compiled is not in it.

        save_seconds  what the last save will take
        """
        self._num_looks += 1
        if self._num_looks > 2:
            self._longest = max(self._longest, now - self._looked_at)
        self._looked_at = now
        return now + 2 * self._longest + 2 * save_seconds + self._slack >= self._ends
