"""Says when a run has become slow, with what the machine shows of the reason, and when that is over."""

import logging
import os
import threading
import time
from collections.abc import Callable, Hashable, Mapping

from trainer.journal import Journal
from trainer.metrics.machine_load import LOOK_SECONDS, Counters, look, reasons
from trainer.metrics.slowdown import MIN_SECONDS, MIN_STEPS, SlowdownWatch, SpeedChange
from trainer.text import duration

log = logging.getLogger(__name__)

TAG = "speed/slowdown"
UNKNOWN = "nothing that this machine counts shows why"

LONGEST_END_SECONDS = 5.0
"""How long the end of a run waits for a report that is under way; a look at the machine that hangs holds nobody up."""

LEAST_LOOK_SECONDS = 0.5
"""A look that the end of a run cut shorter blames nobody: counters go in hundredths of a second."""


class SlowAlarm:
    """Takes the seconds of each step; the machine is looked at on a thread of its own, and training waits for nothing."""

    def __init__(
        self,
        slow_ratio: float | None,
        journal: Journal,
        *,
        launcher_pid: int | None = None,
        look: Callable[[int], Counters] = look,
        look_seconds: float = LOOK_SECONDS,
        kind_of_step: Callable[[int], Hashable] = lambda step: None,
    ) -> None:
        """`launcher_pid`: the process whose descendants are this run's; by default this one. `kind_of_step`: what sort of step this is, by its number."""
        self._watch, self._journal = SlowdownWatch(slow_ratio), journal
        self._root, self._look, self._look_seconds = launcher_pid or os.getpid(), look, look_seconds
        self._kind_of_step, self._ending = kind_of_step, threading.Event()
        self._gpus: Mapping[str, float] = {}
        self._slow_since = 0.0
        self._telling: threading.Thread | None = None

    def step(self, step: int, seconds: float) -> None:
        """One step took so long."""
        change = self._watch.step(seconds, self._kind_of_step(step))
        if change is None:
            return
        if change.is_slow:
            self._slow_since = time.monotonic()
            self._tell_beside(self._tell_slow, step, change)
        else:
            self._tell_beside(self._tell_over, step, change, time.monotonic() - self._slow_since)

    def values(self, machine: Mapping[str, float]) -> dict[str, float]:
        """What goes beside a sample of the machine, which may tell a reason later: the ratio of now, where there is one."""
        self._gpus = machine
        return {} if self._watch.ratio is None else {TAG: self._watch.ratio}

    def wait(self, seconds: float | None = None) -> None:
        """Waits until all has been logged, for this number of seconds at most."""
        if self._telling is not None:
            self._telling.join(seconds)

    def close(self) -> None:
        """The run ends: what is to be reported is logged now."""
        self._ending.set()
        self.wait(LONGEST_END_SECONDS)

    def _tell_beside(self, tell: Callable[..., None], *facts: object) -> None:
        """On a thread, in the order of the calls."""
        before = self._telling

        def go() -> None:
            if before is not None:
                before.join()
            tell(*facts)

        self._telling = threading.Thread(target=go, name="slow-alarm", daemon=True)
        self._telling.start()

    def _reasons(self) -> list[str]:
        """What the machine shows, of a look that lasts a while; nothing where it was cut short or could not be taken, which is logged."""
        try:
            before = self._look(self._root)
            self._ending.wait(self._look_seconds)
            after = self._look(self._root)
        except (OSError, RuntimeError) as error:
            log.warning("what makes the run slow cannot be looked for (%s: %s)", type(error).__name__, error)
            return []
        return reasons(before, after, self._gpus) if after.at - before.at >= LEAST_LOOK_SECONDS else []

    def _tell_slow(self, step: int, change: SpeedChange) -> None:
        found = self._reasons()
        best = f"{change.ratio:.1f} times the {duration(change.best_seconds)} of this launch's best stretch"
        medians = f"medians of {MIN_STEPS} steps and {MIN_SECONDS:.0f} s at least"
        why = "; ".join(found) or UNKNOWN
        log.warning("slow: a step takes %s, %s (%s); %s", duration(change.step_seconds), best, medians, why)
        self._write("slow", step, change, reasons=found)

    def _tell_over(self, step: int, change: SpeedChange, lasted: float) -> None:
        log.info("no longer slow: a step takes %s; it was slow for %s", duration(change.step_seconds), duration(lasted))
        self._write("slow_over", step, change, seconds=round(lasted, 1))

    def _write(self, event: str, step: int, change: SpeedChange, **facts: object) -> None:
        ratio = round(change.ratio, 3)
        self._journal.write(event, step=step, ratio=ratio, step_seconds=change.step_seconds, **facts)
