"""Where a step's time goes: each stretch of it belongs to one part, and the parts add up to the whole.

The loop says after each part that it is over, with one line: `stopwatch.lap("data")`. On a CPU that reads a clock. On CUDA it puts an
event into the stream, which the device passes when it has done all that was asked of it before: so the parts are the device's time, and
a device that waits for data waits in `data`. Nothing there waits for the device.

A step begins where the step before has handed its numbers over, and ends where it hands over its own. What followed the step before, an
evaluation or a save, is reported with this step, and is not part of the time that the step took.
"""

import time
from collections import deque
from typing import TypeAlias

import torch

PARTS = {
    "data": "Waiting for the batch.",
    "forward_backward": "Forward and backward passes over the step's micro-batches, with the reduction of gradients.",
    "optimizer": "Clipping and the optimizer's update, with what is measured around it.",
    "report": "Handing the numbers of a step over (waiting for the slowest rank's), and judging those that have arrived.",
    "evaluation": "The evaluation that followed the step before, where one did.",
    "save": "What training waited for the save that followed the step before, where one did.",
    "profile": "Writing the profile that ended with the step before, where one did.",
}
"""What a stretch of time can belong to."""

RARE = frozenset({"evaluation", "save", "profile"})
"""Parts that few steps have: pauses, and not the step's own time."""

TAGS = {f"time/{part}_seconds": ("seconds", help) for part, help in PARTS.items()}
"""Tag -> (unit, help)."""

Mark: TypeAlias = float | torch.cuda.Event
"""An instant: seconds of this process's clock, or an event that the device passes."""


class StepTimes:
    """The time of one step, by part; on CUDA still under way when it is handed out."""

    def __init__(self, start: Mark, pool: deque[torch.cuda.Event]) -> None:
        self._marks = [start]
        self._parts: list[str] = []
        self._pool = pool
        self._seconds: dict[str, float] | None = None

    def add(self, part: str, end: Mark) -> None:
        """The time since the mark before belongs to `part`."""
        self._parts.append(part)
        self._marks.append(end)

    def seconds(self) -> dict[str, float]:
        """Seconds by part, of the parts that the step had; several stretches of one part add up.

        On CUDA it waits for the device to have passed the last mark: called once a later number of that stream has arrived, it does not.
        """
        if self._seconds is None:
            self._seconds = {}
            if isinstance(self._marks[-1], torch.cuda.Event):
                self._marks[-1].synchronize()
            for part, start, end in zip(self._parts, self._marks, self._marks[1:]):
                self._seconds[part] = self._seconds.get(part, 0.0) + _seconds_between(start, end)
            self._pool.extend(mark for mark in self._marks if isinstance(mark, torch.cuda.Event))
            self._marks.clear()
        return self._seconds

    def step_seconds(self) -> float:
        """What the step took by the device's clock, without pauses; waits as `seconds` does."""
        return sum(seconds for part, seconds in self.seconds().items() if part not in RARE)


class Stopwatch:
    """Divides the loop's time among the parts of its steps."""

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._pool: deque[torch.cuda.Event] = deque()  # a thread that reads gives back, this one takes
        self._times: StepTimes | None = None

    def start(self) -> None:
        """The first step begins now; what was before belongs to no step."""
        self._times = StepTimes(self._mark(), self._pool)

    def lap(self, part: str) -> None:
        """Ends a part: the time since the last call of any method here belongs to it."""
        assert self._times is not None, "start() begins the first step"
        assert part in PARTS, f"{part!r} is not one of {', '.join(PARTS)}"
        self._times.add(part, self._mark())

    def end_step(self) -> StepTimes:
        """Ends a step, whose time since its last lap belongs to `report`, and begins the next."""
        assert self._times is not None, "start() begins the first step"
        ended = self._times
        ended.add("report", self._mark())
        self._times = StepTimes(self._mark(), self._pool)
        return ended

    def _mark(self) -> Mark:
        if not self._on_cuda:
            return time.perf_counter()
        event = self._pool.popleft() if self._pool else torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _seconds_between(start: Mark, end: Mark) -> float:
    if isinstance(start, float) and isinstance(end, float):
        return end - start
    assert isinstance(start, torch.cuda.Event), "both marks are of one clock"
    return start.elapsed_time(end) / 1000
