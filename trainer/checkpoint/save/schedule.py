"""When to take a snapshot in memory, and when to write one to the disk: by budget, from costs that were measured.

    a save costs           the stall of the training thread, and the writer's CPU time where training runs on the same cores
    a machine crash loses  the interval + the writing + the step that was running: all since the newest committed snapshot
    the interval           as long as max_lost_work_seconds allows, longer where max_overhead_fraction demands it, and then that is said
    snapshots between      spend what is left of max_overhead_fraction; they bound what a crash of the process loses

Nothing here looks at a clock: every `now` is handed in, in monotonic seconds, so that a clock that jumps changes nothing.
"""

import math
import statistics
from collections import deque
from dataclasses import dataclass, replace

from trainer.text import duration

WAITED_FOR = ("final", "interrupt")
"""Reasons for a save that must be on the disk before anything else happens."""

BY_BUDGET = ("snapshot", "budget")
"""Reasons for a save that may be left out while the disk is behind: the next one serves as well. Others are for their very step."""

FIRST_SECONDS = 10.0
"""The first write comes so soon, and the first snapshots so far apart: costs are to be measured, not guessed."""

NUM_MEASUREMENTS = 9
"""How many of the newest measurements of a kind a median is taken of."""

NUM_FIRST_SNAPSHOTS = 3
"""The first copy goes into cold memory and costs many times as much as the later ones; so many are taken to see past it."""


@dataclass(frozen=True)
class Budget:
    """What protection may cost, and what it has to give."""

    max_lost_work_seconds: float = 60.0
    """Infinity: nothing is written by the clock."""
    max_overhead_fraction: float = 0.01
    every_minutes: float | None = None
    every_tokens: int | None = None
    writer_takes_from_step: bool = False
    """Whether the writer's CPU time is taken from the step: training on CPUs yes, on a GPU no."""
    has_snapshots: bool = True
    """Whether the host has room for a snapshot that stays in memory; where it has none, every save is a write."""


@dataclass(frozen=True)
class Costs:
    """What was measured, in seconds; medians over the newest."""

    stall_seconds: float
    """How long a snapshot holds the training thread."""
    write_seconds: float
    """From the end of the snapshot to the commit."""
    writer_cpu_seconds: float
    step_seconds: float


@dataclass(frozen=True)
class Plan:
    """What the budget comes to at given costs."""

    write_interval_seconds: float
    snapshot_interval_seconds: float | None
    """Between two snapshots; None where there are none between two writes."""
    save_seconds: float
    """Training time that one written save costs."""
    lost_work_seconds: float
    """What a crash of the machine may lose at this interval."""
    overhead_fraction: float
    """Share of the training time that writes and snapshots cost."""
    is_overhead_bound: bool
    """Whether max_overhead_fraction, not max_lost_work_seconds, made the interval."""


def plan(budget: Budget, costs: Costs) -> Plan:
    """The intervals that keep both bounds, or the bound on overhead where both cannot be kept."""
    save_seconds = costs.stall_seconds + (costs.writer_cpu_seconds if budget.writer_takes_from_step else 0.0)
    allowed = save_seconds / budget.max_overhead_fraction
    wanted = budget.max_lost_work_seconds - costs.write_seconds - costs.step_seconds
    soonest = max(costs.write_seconds, costs.step_seconds)  # one save in flight, and one a step
    interval = max(wanted, allowed, soonest)
    written_fraction = save_seconds / interval
    between = _snapshot_interval(budget, costs, interval, budget.max_overhead_fraction - written_fraction)
    return Plan(
        write_interval_seconds=interval,
        snapshot_interval_seconds=between,
        save_seconds=save_seconds,
        lost_work_seconds=interval + costs.write_seconds + costs.step_seconds,
        overhead_fraction=written_fraction + (costs.stall_seconds / between if between else 0.0),
        is_overhead_bound=allowed >= max(wanted, soonest),
    )


def _snapshot_interval(budget: Budget, costs: Costs, write_interval: float, left_fraction: float) -> float | None:
    if not budget.has_snapshots or left_fraction <= 0:
        return None
    interval = max(costs.stall_seconds / left_fraction, costs.step_seconds)
    return interval if 0 < interval < write_interval else None


def conflict(budget: Budget, costs: Costs) -> str | None:
    """Why a machine crash may lose more than max_lost_work_seconds, with figures and what to change; None where it may not."""
    planned = plan(budget, costs)
    if planned.lost_work_seconds <= 1.01 * budget.max_lost_work_seconds:  # three digits would not show the difference
        return None
    loses = f"a machine crash may lose {_seconds(planned.lost_work_seconds)} instead of {_seconds(budget.max_lost_work_seconds)}"
    raise_loss = f"raise checkpoint.max_lost_work_seconds to {_up(planned.lost_work_seconds):g}"
    if not planned.is_overhead_bound:
        return (
            f"a step takes {_seconds(costs.step_seconds)} and writing a checkpoint {_seconds(costs.write_seconds)}, so even with one "
            f"straight after another {loses}; write to a faster disk, or {raise_loss}"
        )
    room = budget.max_lost_work_seconds - costs.write_seconds - costs.step_seconds
    fraction = planned.save_seconds / room if room >= max(costs.write_seconds, costs.step_seconds) and room else 2.0
    raise_fraction = f"raise checkpoint.max_overhead_fraction to {_up(fraction):g} or " if _up(fraction) <= 1 else ""
    return (
        f"a save costs {_seconds(planned.save_seconds)} of training, so at most {_percent(budget.max_overhead_fraction)} overhead "
        f"allows one every {_seconds(planned.write_interval_seconds)}: {loses}; {raise_fraction}{raise_loss}"
    )


class SaveSchedule:
    """Decides for one launch, and keeps what it measures. Lives on rank 0, whose decision everyone is told."""

    def __init__(self, budget: Budget, now: float, tokens: int = 0) -> None:
        """`now` stands for the moment of the checkpoint that the launch began from; `tokens` for its tokens."""
        self._budget = budget
        self._stall, self._write, self._cpu, self._step = (deque[float](maxlen=NUM_MEASUREMENTS) for _ in range(4))
        self._snapshot_at = self._write_at = now
        self._write_tokens = tokens
        self._is_writing = self._has_failed = False
        self._said: tuple[float, bool] | None = None
        self.meter = LostWorkMeter(now)

    # What happened

    def stepped(self, seconds: float) -> None:
        """A step took so long, without saves and evaluations."""
        self._step.append(seconds)

    def snapshot_taken(self, now: float, stall_seconds: float, *, tokens: int = 0, to_write: bool) -> None:
        """A snapshot ended at `now`; the writer begins with it when `to_write`."""
        self._stall.append(stall_seconds)
        self.meter.cost(stall_seconds)
        self._snapshot_at = now
        if to_write:
            self._is_writing, self._write_at, self._write_tokens = True, now, tokens

    def write_committed(
        self, now: float, write_seconds: float, cpu_seconds: float, moment: float | None = None, *, is_last: bool = True
    ) -> None:
        """A snapshot is a checkpoint on the disk: that of `moment` (None: the newest `to_write`); `is_last`: no other is under way."""
        self._write.append(write_seconds)
        self._cpu.append(cpu_seconds)
        self._is_writing, self._has_failed = not is_last, False
        self.meter.cost(cpu_seconds if self._budget.writer_takes_from_step else 0.0)
        self.meter.committed(self._write_at if moment is None else moment, now)

    def write_failed(self, writer_cpu_seconds: float = 0.0) -> None:
        """It came to nothing; the next one is due after an interval of at least max_lost_work_seconds."""
        self._is_writing, self._has_failed = False, True
        self.meter.cost(writer_cpu_seconds if self._budget.writer_takes_from_step else 0.0)

    def writer_lost(self) -> None:
        """There is no writer any more: what was under way came to nothing, and nothing is kept in memory from here on."""
        self._budget = replace(self._budget, has_snapshots=False)
        self._is_writing = False

    # What it comes to

    def written(self, seconds: float) -> dict[str, float]:
        """What a checkpoint cost that took so many seconds to write, by tag."""
        stall_seconds = self.costs.stall_seconds if self.costs else 0.0
        return {"checkpoint/write_seconds": seconds, "checkpoint/stall_seconds": stall_seconds}

    def promise(self, now: float) -> dict[str, float]:
        """What the promise comes to so far, by tag."""
        return {
            "checkpoint/worst_lost_work_seconds": self.meter.worst_lost_work_seconds(now),
            "checkpoint/overhead_fraction": self.meter.overhead_fraction(now),
        }

    # What is due

    @property
    def costs(self) -> Costs | None:
        """Medians of what was measured; None until a whole save was."""
        if not (self._stall and self._write):
            return None
        measured = (self._stall, self._write, self._cpu, self._step)
        # The lower of two middle values: after two measurements the cold first one is not counted.
        return Costs(*(statistics.median_low(values or [0.0]) for values in measured))

    @property
    def plan(self) -> Plan | None:
        return plan(self._budget, self.costs) if self.costs else None

    def write_due(self, now: float, tokens: int = 0) -> str | None:
        """Why a write should begin at this step: `budget`, `minutes` or `tokens`; None for none, and while one is under way."""
        if self._is_writing:
            return None
        since = now - self._write_at
        if since >= self._write_interval():
            return "budget"
        if self._budget.every_minutes and since >= 60 * self._budget.every_minutes:
            return "minutes"
        every = self._budget.every_tokens
        if every and tokens // every > self._write_tokens // every:
            return "tokens"
        return None

    def _write_interval(self) -> float:
        if math.isinf(self._budget.max_lost_work_seconds):
            return math.inf
        planned = self.plan
        wanted = planned.write_interval_seconds if planned else min(FIRST_SECONDS, self._budget.max_lost_work_seconds)
        return max(wanted, self._budget.max_lost_work_seconds) if self._has_failed else wanted

    def snapshot_due(self, now: float) -> bool:
        """Whether a snapshot should be taken at this step, besides those that are written."""
        since = now - self._snapshot_at
        if not self._budget.has_snapshots or not self._stall:
            return False
        if len(self._stall) < NUM_FIRST_SNAPSHOTS:
            return since >= FIRST_SECONDS
        planned = self.plan
        between = planned.snapshot_interval_seconds if planned else None
        return between is not None and since >= between

    def news(self) -> str | None:
        """The interval with its reasons, when it was not said yet or has changed by more than a quarter since."""
        planned, costs = self.plan, self.costs
        if planned is None or costs is None or math.isinf(self._budget.max_lost_work_seconds):
            return None
        problem = conflict(self._budget, costs)
        if self._said:
            said, was_problem = self._said
            if abs(planned.write_interval_seconds - said) <= said / 4 and (problem is None or was_problem):
                return None
        self._said = (planned.write_interval_seconds, problem is not None)
        return problem or _describe(planned, costs)


class LostWorkMeter:
    """What the promise came to so far: the worst loss that was possible at any moment, and the share of time that saving took."""

    def __init__(self, now: float) -> None:
        self._began = self._safe_at = now
        self._worst_seconds = self._cost_seconds = 0.0

    def committed(self, moment: float, now: float) -> None:
        """The snapshot of `moment` became a checkpoint at `now`; up to then the one before it was the newest."""
        self._worst_seconds = self.worst_lost_work_seconds(now)
        self._safe_at = max(self._safe_at, moment)

    def cost(self, seconds: float) -> None:
        """Saving took so much from training."""
        self._cost_seconds += seconds

    def lost_work_seconds(self, now: float) -> float:
        """What a crash of the machine would lose at this moment."""
        return max(0.0, now - self._safe_at)

    def worst_lost_work_seconds(self, now: float) -> float:
        """What a crash of the machine would have lost at the worst moment so far."""
        return max(self._worst_seconds, self.lost_work_seconds(now))

    def overhead_fraction(self, now: float) -> float:
        """Share of the time since the launch began that saving took from training."""
        return self._cost_seconds / (now - self._began) if now > self._began else 0.0


def _describe(planned: Plan, costs: Costs) -> str:
    between = planned.snapshot_interval_seconds
    snapshots = f", and a snapshot in memory every {_seconds(between)}" if between else ""
    return (
        f"a checkpoint every {_seconds(planned.write_interval_seconds)}{snapshots}: a machine crash loses "
        f"{_seconds(planned.lost_work_seconds)} at most; a save costs {_seconds(planned.save_seconds)} of training and {_seconds(costs.write_seconds)} of writing, "
        f"{_percent(planned.overhead_fraction)} overhead in all"
    )


def _seconds(seconds: float) -> str:
    """Seconds as the settings count them, in three digits; from an hour on in larger units."""
    return f"{seconds:.3g} s" if seconds < 999.5 else f"{seconds:.0f} s" if seconds < 3600 else duration(seconds)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.3g} %"


def _up(number: float, num_digits: int = 2) -> float:
    """A number rounded up to so many digits: what is set to it suffices."""
    places = num_digits - 1 - math.floor(math.log10(number)) if number > 0 else 0
    return round(math.ceil(round(number * 10**places, 6)) / 10**places, max(places, 0))
