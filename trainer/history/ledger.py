"""What happened to a run, from its journal: launches and their ends, what each end cost, and where the time went. Pure.

    wall time   from the first launch to the end of the last one, or to now while it lives
    counts      the time of the steps that stand in metrics.jsonl: each once, whatever was lost and taken again
    lost        the time of steps and evaluations that a later launch did again, or a rollback gave up
    starting    from a launch, or a restart, to its first step
    down        from the end of a launch to the next one; `stopped` where somebody had asked for the end

The journal's times are those of a clock that may be set. Where one goes back, the time in between counts as none.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from trainer.ending.causes import SECOND_HAND, Cause
from trainer.history.words import moment, number

ASKED_FOR = (Cause.FINISHED, Cause.INTERRUPTED, Cause.SIGINT)
"""Ends that somebody wanted."""

_WITHOUT_A_WORD = "ended without a word: killed with all its processes, or the machine went down"

KEPT = ("bad_batch", "recompute", "rollback", "digest_differs", "hang", "restart", "gave_up", "slow_over")
"""Kinds of events that a ledger has as they are."""

MAX_POINTS = 4096
"""Saves that are kept to be drawn; of more, every so many-th."""


@dataclass
class Launch:
    """One start of the run's processes. Times are seconds since the run's first event."""

    began: float
    processes: int = 1
    machine: str = ""
    resumed_at: int | None = None
    trains_since: float | None = None
    """When its first step began; None when it did not come so far."""
    verdict: str | None = None
    """What the comparison of its replayed steps said; None where there was nothing to compare, or it did not come so far."""
    is_exact: bool | None = None
    replay: str | None = None
    """What was to be compared, and what could not."""
    ended: float | None = None
    """None while it goes on."""
    at: str | None = None
    """When it ended, by the clock on the wall (ISO 8601)."""
    cause: str | None = None
    """Why it ended (ending/causes.py); None while it goes on."""
    step: int | None = None
    """Where it ended; None when nobody could say."""
    words: str = ""
    lost_steps: int = 0
    """What it had done, and the next one did again."""
    lost_seconds: float = 0.0
    reached: int = 0
    """The last step that anything tells of."""

    @property
    def has_trained(self) -> bool:
        """Whether it took a step; earlier versions did not write down when it began."""
        return self.trains_since is not None or self.reached > (self.resumed_at or 0)


@dataclass
class Cost:
    """What the ends of one cause cost in all."""

    cause: str
    stops: int = 0
    lost_steps: int = 0
    lost_seconds: float = 0.0
    down_seconds: float = 0.0
    start_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        return self.lost_seconds + self.down_seconds + self.start_seconds


@dataclass
class Save:
    """A checkpoint that was committed: `at` in seconds since the run's first event."""

    at: float
    step: int
    seconds: float
    bytes: int


@dataclass
class Ledger:
    """A run's launches, and everything that happened in them."""

    launches: list[Launch] = field(default_factory=list)
    events: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Those of KEPT, by kind."""
    rollbacks: Cost = field(default_factory=lambda: Cost("rollback"))
    """What was undone while the processes went on."""
    saves: list[Save] = field(default_factory=list)
    num_saves: int = 0
    began_at: str | None = None
    """ISO 8601."""
    wall_seconds: float = 0.0

    @property
    def seconds_by_launch(self) -> float:
        """Of all launches together, without the time between them."""
        return sum((launch.ended or self.wall_seconds) - launch.began for launch in self.launches)

    @property
    def process_seconds(self) -> float:
        """The same for every process."""
        return sum(((launch.ended or self.wall_seconds) - launch.began) * launch.processes for launch in self.launches)

    @property
    def start_seconds(self) -> float:
        return sum(map(self._started, self.launches))

    def _started(self, launch: Launch) -> float:
        until = launch.began if launch.trains_since is None and launch.has_trained else launch.trains_since
        if until is None:
            until = self.wall_seconds if launch.ended is None else launch.ended
        return until - launch.began

    @property
    def lost_seconds(self) -> float:
        return sum(launch.lost_seconds for launch in self.launches) + self.rollbacks.lost_seconds

    @property
    def lost_steps(self) -> int:
        return sum(launch.lost_steps for launch in self.launches) + self.rollbacks.lost_steps

    def _down(self, launch: Launch, after: Launch) -> float:
        return after.began - (after.began if launch.ended is None else launch.ended)

    def down_seconds(self, *, asked_for: bool) -> float:
        """Time between launches, after ends that somebody asked for, or after the others."""
        pairs = zip(self.launches, self.launches[1:])
        return sum(self._down(*pair) for pair in pairs if (pair[0].cause in ASKED_FOR) == asked_for)

    @property
    def costs(self) -> list[Cost]:
        """What the ends that nobody asked for cost, by cause, the dearest first."""
        by_cause = {"rollback": replace(self.rollbacks)} if self.rollbacks.stops else {}
        for launch, after in zip(self.launches, [*self.launches[1:], None]):
            if launch.cause is None or (launch.cause in ASKED_FOR and not launch.lost_steps):
                continue
            cost = by_cause.setdefault(launch.cause, Cost(launch.cause))
            cost.stops += 1
            cost.lost_steps += launch.lost_steps
            cost.lost_seconds += launch.lost_seconds
            if after is not None and launch.cause not in ASKED_FOR:
                cost.down_seconds += self._down(launch, after)
                cost.start_seconds += self._started(after)
        return sorted(by_cause.values(), key=lambda cost: -cost.seconds)

    @property
    def resumes(self) -> list[Launch]:
        return [launch for launch in self.launches if launch.resumed_at is not None]

    @property
    def exactness(self) -> tuple[int, int]:
        """(resumes whose replayed steps were bit-identical, resumes of which steps were compared)."""
        judged = [launch for launch in self.launches if launch.is_exact is not None]
        return sum(bool(launch.is_exact) for launch in judged), len(judged)


def ledger_of(
    events: Iterable[Mapping[str, Any]],
    *,
    now: datetime | None,
    last_sign: datetime | None = None,
    step_seconds: float = 0.0,
) -> Ledger:
    """What a run's events, oldest first, come to.

    now           the present, where the run is alive; None where it is not
    last_sign     when it last wrote a step, for a launch that ended without a word
    step_seconds  what a step takes, for runs of earlier versions, which did not write down what was lost
    """
    reading = _Reading(step_seconds)
    for event in events:
        reading.add(event)
    return reading.close(now, last_sign)


class _Reading:
    """A ledger that is being written."""

    def __init__(self, step_seconds: float) -> None:
        self._ledger, self._step_seconds = Ledger(), step_seconds
        self._launch: Launch | None = None
        self._begins: float | None = None
        """When the next launch was asked for."""
        self._first: datetime | None = None
        self._before: datetime | None = None
        self._now = 0.0
        self._undone = 0, 0.0
        """Steps that the last rollback undid, and their seconds, until it is told how many were done again."""
        self._stride = 1

    def add(self, event: Mapping[str, Any]) -> None:
        """Takes the next event."""
        kind = event["event"]
        if kind in ("launch", "start"):
            self._end({})  # by the event before this one, if it left no word
        self._tick(moment(event))
        step, launch = event.get("step"), self._launch
        if kind == "restart":
            self._end(event)
        if kind in ("launch", "restart"):
            waited_from = self._now if launch is None or launch.ended is None else launch.ended
            self._begins = max(self._now, waited_from + number(event, "wait_seconds"))
        elif kind == "waiting":  # for longer than it said
            self._begins = None
        elif kind == "start":
            begins = self._now if self._begins is None else min(self._now, self._begins)
            processes = event.get("processes")
            known = processes if isinstance(processes, int) else 1
            self._launch, self._begins = Launch(begins, known, str(event.get("machine", ""))), None
            self._ledger.launches.append(self._launch)
        elif launch is not None:
            self._hear(launch, kind, event, step if isinstance(step, int) else None)
        if kind in KEPT:
            self._ledger.events.setdefault(kind, []).append(dict(event))

    def _hear(self, launch: Launch, kind: str, event: Mapping[str, Any], step: int | None) -> None:
        launch.reached = max(launch.reached, step or 0)
        if kind == "resume":
            launch.resumed_at = step
            self._estimate_lost(step or 0)
        elif kind == "train":
            self._undo(-1)  # what a rollback undid is told with what is done again
            lost = int(number(event, "lost_steps")), number(event, "lost_seconds")
            if launch.trains_since is not None:
                self._undone = lost
                self._undo(1)
            else:
                launch.trains_since, launch.replay = self._now, event.get("replay")
                self._lost(*lost)
            self._undone = 0, 0.0
        elif kind == "rollback":
            steps = max(0, int(number(event, "from_step")) - int(number(event, "to_step")))
            self._undone = steps, steps * self._step_seconds
            self._ledger.rollbacks.stops += 1
            self._undo(1)
        elif kind == "verdict":
            launch.verdict, launch.is_exact = str(event.get("text")), bool(event.get("exact"))
        elif kind == "save":
            self._save(event, step or 0)
        elif kind == "hang":
            words = f"rank {event.get('rank')} made no progress while {event.get('phase')}"
            self._stopped(launch, {"cause": "hang", "reason": words, **event})
        elif kind == "stop":
            self._stopped(launch, event)

    def _stopped(self, launch: Launch, event: Mapping[str, Any]) -> None:
        """The first that knows why counts; what only heard of it, where nobody else says anything."""
        if launch.cause is not None and launch.cause not in SECOND_HAND:
            return
        if launch.cause is not None and event.get("cause") in SECOND_HAND:
            return
        if launch.ended is None:  # the others of it end soon after the first, whoever says why
            launch.ended, launch.at = self._now, event.get("time")
        step, launch.cause = event.get("step"), str(event.get("cause"))
        launch.step, launch.words = step if isinstance(step, int) else launch.step, str(event.get("reason") or "")

    def _end(self, restart: Mapping[str, Any]) -> None:
        """The launch is over by now; a supervisor may say why, where the launch could not itself."""
        launch, self._launch = self._launch, None
        if launch is None:
            return
        if restart.get("cause"):
            words = restart.get("words") or ""
            self._stopped(launch, {**restart, "reason": words})
        if launch.cause is None:
            launch.cause, launch.words = str(Cause.UNKNOWN), _WITHOUT_A_WORD
        if launch.ended is None:
            launch.ended = self._now
            launch.at = None if self._before is None else self._before.isoformat(timespec="milliseconds")

    def _trained_before(self) -> Launch | None:
        """The last launch before this one that took a step."""
        return next((one for one in self._ledger.launches[-2::-1] if one.has_trained), None)

    def _lost(self, steps: int, seconds: float) -> None:
        before = self._trained_before()
        if before is not None:
            before.lost_steps, before.lost_seconds = steps, seconds

    def _undo(self, sign: int) -> None:
        steps, seconds = self._undone
        self._ledger.rollbacks.lost_steps += sign * steps
        self._ledger.rollbacks.lost_seconds += sign * seconds

    def _estimate_lost(self, step: int) -> None:
        """What earlier versions lost; what today's write down takes its place."""
        before = self._trained_before()
        steps = max(0, before.reached - step) if before else 0
        self._lost(steps, steps * self._step_seconds)

    def _save(self, event: Mapping[str, Any], step: int) -> None:
        ledger = self._ledger
        ledger.num_saves += 1
        if ledger.num_saves % self._stride == 0:
            seconds, num_bytes = number(event, "seconds"), int(number(event, "bytes"))
            ledger.saves.append(Save(self._now, step, seconds, num_bytes))
        if len(ledger.saves) > MAX_POINTS:
            ledger.saves, self._stride = ledger.saves[1::2], 2 * self._stride

    def _tick(self, at: datetime | None) -> None:
        if at is None:
            return
        if self._first is None:
            self._first, self._ledger.began_at = at, at.isoformat(timespec="milliseconds")
        if self._before is not None:
            self._now += max(0.0, (at - self._before).total_seconds())
        self._before = at

    def close(self, now: datetime | None, last_sign: datetime | None) -> Ledger:
        """What was read, at the present."""
        if now is not None:
            self._tick(now)
            self._ledger.wall_seconds = self._now
            return self._ledger
        is_open = self._launch is not None and self._launch.ended is None
        if is_open and last_sign and (not self._before or last_sign > self._before):
            self._tick(last_sign)
        self._end({})
        ends = [launch.ended for launch in self._ledger.launches if launch.ended is not None]
        self._ledger.wall_seconds = max(ends, default=self._now)
        return self._ledger
