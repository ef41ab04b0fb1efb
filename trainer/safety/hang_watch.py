"""A hang: a rank that makes no progress, found by the launch, which sees each rank's signs of life (beats.py) and its processor time.

A rank is overdue once it has said nothing for longer than what it does may take. A launch hangs when every rank on this machine is overdue and
one of them does not compute: the others wait for it, with or without spinning. Ranks that all compute are left alone up to
`hang.max_seconds`; a rank on a GPU spins whether its kernels make progress or not, so there its silence alone counts. It speaks at each
micro-batch and each batch of an evaluation, which its host only reaches when the kernels before have finished, but for a few hundred.
"""

import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import psutil

from trainer.beats import TRAINING, Beat
from trainer.config.unattended import HangConfig
from trainer.text import duration

KNOWN_STEPS = 50
"""Steps before the limit of a step is learnt."""
TIMES_P99 = 10.0
REMEMBERED_STEPS = 1000
LIMITS = {"starting": 3600.0, "finishing": 3600.0, "evaluating": 1800.0, "saving": 1800.0, "compiling": 1800.0}
"""Seconds that something else than a step may take without a sign of life; other pauses: `hang.first_seconds`."""

IDLE_SHARE = 0.01
"""A process that computes less than this share of a core does not compute."""
LOST_SIGHT_SECONDS = 10.0
"""A look so long after the one before: this process was stopped too, or the machine slept; nothing is known of the time between."""


NOT_THERE = Beat(0, 0, 0, 0.0, False, "starting")
"""Of a rank that has said nothing yet: it may hang while it is imported."""


@dataclass(frozen=True)
class Hang:
    """A launch that makes no progress."""

    ranks: tuple[int, ...]
    """Those that are behind: that do not compute, or, where all do, the last ones."""
    beats: Mapping[int, Beat]
    seconds: float
    """Since the last sign of life of any rank."""
    limit_seconds: float

    @property
    def words(self) -> str:
        """As a sentence without its end."""
        where = ", ".join(
            f"rank {rank} ({self.beats[rank].phase} after step {self.beats[rank].step})" for rank in self.ranks
        )
        return f"no progress for {duration(self.seconds)}, where {duration(self.limit_seconds)} is the limit: {where}"


@dataclass
class _Seen:
    """What is known of a rank."""

    beat: Beat
    since: float
    """When its last sign of life was new."""
    step_at: float | None = None
    """When a step began that is measured; None where something else came between."""
    step_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED_STEPS))
    busy: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=600))
    """(time, seconds of processor time that its processes have taken)."""


class HangWatch:
    """Judges by what it is shown; `look` is called every second or so."""

    def __init__(
        self,
        settings: HangConfig,
        read: Callable[[], Mapping[int, Beat]],
        num_ranks: int,
        busy_seconds: Callable[[int], float | None] | None = None,
    ) -> None:
        """`read` gives the ranks' last beats; `busy_seconds` the processor time of a process and those below it, None when it is gone."""
        self._settings, self._read, self._num_ranks = settings, read, num_ranks
        self._busy_seconds = busy_seconds or processor_seconds
        self._seen: dict[int, _Seen] = {}
        self._last_look: float | None = None

    def look(self, now: float | None = None) -> Hang | None:
        """Whether the launch hangs, at this time (time.monotonic)."""
        now = time.monotonic() if now is None else now
        lost_sight = self._last_look is not None and now - self._last_look > LOST_SIGHT_SECONDS
        self._last_look = now
        beats = dict(self._read())
        for rank in range(self._num_ranks):
            if rank not in self._seen:
                self._seen[rank] = _Seen(NOT_THERE, now)
            if lost_sight:
                self._seen[rank].step_at = None
            if rank in beats:
                self._note(rank, beats[rank], now)
        if lost_sight:
            for seen in self._seen.values():
                seen.since = now
                seen.busy.clear()
        return self._judge(now)

    def _note(self, rank: int, beat: Beat, now: float) -> None:
        seen = self._seen[rank]
        if seen.beat.pid != beat.pid:
            seen = self._seen[rank] = _Seen(beat, now)
        elif seen.beat.number != beat.number:
            steps = beat.step - seen.beat.step
            if beat.phase != TRAINING:
                seen.step_at = None
            elif seen.step_at is None:
                seen.step_at = beat.at
            elif steps > 0:
                seen.step_seconds.extend([(beat.at - seen.step_at) / steps] * min(steps, REMEMBERED_STEPS))
                seen.step_at = beat.at
            seen.beat, seen.since = beat, now
            seen.busy.clear()
        elif (seconds := self._busy_seconds(beat.pid)) is not None:  # asked of the silent alone: it takes a millisecond
            seen.busy.append((now, seconds))

    def _judge(self, now: float) -> Hang | None:
        silent = {rank: now - seen.since for rank, seen in self._seen.items()}
        limits = {rank: self.limit_seconds(rank) for rank in self._seen}
        if any(silent[rank] <= limits[rank] for rank in self._seen):
            return None
        absent = [rank for rank in self._seen if self._seen[rank].beat == NOT_THERE]
        behind = absent or [rank for rank in self._seen if not self._computes(rank)]
        seconds = min(silent.values())
        if not behind:
            if seconds <= max(self._settings.max_seconds, *limits.values()):
                return None
            behind = list(self._seen)
        last = min(self._seen[rank].beat.step for rank in behind)
        ranks = tuple(rank for rank in sorted(behind) if self._seen[rank].beat.step == last)
        beats = {rank: seen.beat for rank, seen in self._seen.items()}
        return Hang(ranks, beats, seconds, max(limits.values()))

    def limit_seconds(self, rank: int) -> float:
        """How long a rank may be silent at what it does."""
        seen, settings = self._seen[rank], self._settings
        if seen.beat.phase != TRAINING:
            return max(settings.min_seconds, LIMITS.get(seen.beat.phase, settings.first_seconds))
        if len(seen.step_seconds) < KNOWN_STEPS:
            return max(settings.min_seconds, settings.first_seconds)
        return max(settings.min_seconds, TIMES_P99 * statistics.quantiles(seen.step_seconds, n=100)[-1])

    def _computes(self, rank: int) -> bool:
        """Whether its processes have taken processor time since its last sign of life; what a GPU's rank takes says nothing."""
        seen = self._seen[rank]
        if seen.beat.on_gpu:
            return False
        if len(seen.busy) < 2:
            return True  # it was not looked at long enough
        (first, at_first), (last, at_last) = seen.busy[len(seen.busy) // 2], seen.busy[-1]
        return at_last - at_first > IDLE_SHARE * max(last - first, 1e-9)


def processor_seconds(pid: int) -> float | None:
    """What a process and those below it have computed so far; None where it is gone."""
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
        return sum(sum(one.cpu_times()[:2]) for one in family)
    except psutil.NoSuchProcess:
        return None


def is_stopped(pid: int) -> bool:
    """Whether a process was suspended, as by SIGSTOP."""
    try:
        return psutil.Process(pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    except psutil.NoSuchProcess:
        return False
