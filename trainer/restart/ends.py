"""How a launch ended, for the table: from the journal, outcome.json and the disk."""

import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from trainer import files
from trainer.config.schema import Config
from trainer.config.unattended import RestartConfig
from trainer.ending.causes import SECOND_HAND, Cause
from trainer.ending.outcome_file import read_outcome
from trainer.ending.outcomes import Outcome
from trainer.errors import TrainerError
from trainer.journal import read_events
from trainer.restart.decide import End

SWITCH = "TRAINER_RESTART"
"""An environment variable; `off`: `restart.enabled: auto` starts nothing again."""

LEAST_BYTES = 1 << 20
"""What the run's own folder needs for a start to say how it goes."""

WITHOUT_A_WORD = "it ended without a word"

_CHANGING = re.compile(r"[\w.+-]*\d[\w.+-]*|\btmp\w+")
"""What differs between two tellings of one failure: addresses, process numbers, sizes, names of temporary files."""


@dataclass
class _Ended:
    """One launch, as far as the journal tells of it."""

    cause: str | None = None
    words: str = ""
    step: int = 0
    reached: int = 0
    was_asked_to_stop: bool = False


class Witness:
    """What the process that starts a run again has seen itself, which holds also where the disk takes no journal."""

    def __init__(self) -> None:
        self._restarts: list[float] = []
        self._reached, self._num_stuck = -1, 0

    def restarts(self, now: float | None = None) -> None:
        """It starts again (`now`: time.monotonic)."""
        self._restarts.append(time.monotonic() if now is None else now)

    def add(self, end: End, window_hours: float, now: float | None = None) -> End:
        """An end, with what was seen of those before it where the journal knows of less."""
        now = time.monotonic() if now is None else now
        self._num_stuck = self._num_stuck + 1 if end.step <= self._reached else 0
        self._reached = max(self._reached, end.step)
        number = sum(now - at <= window_hours * 3600 for at in self._restarts)
        return replace(end, num_restarts=max(end.num_restarts, number), num_stuck=max(end.num_stuck, self._num_stuck))


def is_enabled(settings: RestartConfig, environment: Mapping[str, str]) -> bool:
    """Whether this launch is started again where it ends; under a scheduler, which does that itself, only where a person says so."""
    if settings.enabled != "auto":
        return settings.enabled is True
    return "SLURM_JOB_ID" not in environment and environment.get(SWITCH) != "off"


def outcome_of(code: int) -> Outcome:
    """What a launch's exit code says: what the disk says may be of an earlier launch, where it took no word of this one."""
    told = (Outcome.FINISHED, Outcome.INTERRUPTED, Outcome.DIVERGED, Outcome.REFUSED)
    return next((outcome for outcome in told if outcome.exit_code == code), Outcome.FAILED)


def end_of(config: Config, folder: Path, checkpoints: Path, code: int, now: datetime | None = None) -> End:
    """How the launch that has just ended with this exit code did, of the run in `folder`. raises OSError"""
    events = _since_given_up(read_events(folder))
    launches = _launches(events)
    last, outcome, said = launches[-1], outcome_of(code), read_outcome(folder)
    steps = _steps(checkpoints)
    return End(
        outcome=outcome,
        cause=last.cause or Cause.UNKNOWN,
        words=last.words or (said["reason"] if said and said["outcome"] == outcome else WITHOUT_A_WORD),
        step=max(last.step, last.reached),
        num_same=_same(launches),
        num_stuck=_stuck(launches),
        num_restarts=_num_restarts(events, config.restart.window_hours, now or datetime.now(UTC)),
        micro_batch=config.micro_batch,
        was_asked_to_stop=last.was_asked_to_stop,
        has_saved=bool(steps),
        lacks_room=outcome != Outcome.FINISHED and lacks_room(config, folder, checkpoints),
        older_step=steps[-2] if len(steps) > 1 else None,
    )


def lacks_room(config: Config, folder: Path, checkpoints: Path) -> bool:
    """Whether no word more can be written of the run, or its disk has no room for a checkpoint as large as the newest.

    Where a bound of the run's own (max_disk_bytes) makes room before each save, the start itself finds out.
    """
    try:
        if files.free_bytes(folder) < LEAST_BYTES:
            return True
        steps = _steps(checkpoints)
        if not steps or config.checkpoint.max_disk_bytes is not None:
            return False
        newest = checkpoints / f"step-{steps[-1]:08d}"
        needed = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
        return files.free_bytes(checkpoints) < needed
    except (OSError, TrainerError):
        return False


def adapted_micro_batch(folder: Path, config: Config) -> int | None:
    """The micro_batch that a run goes on with since its memory was too small for the one configured; None: that one.

    Also where the one configured was typed: the same command is typed again, and memory is not larger for it.
    """
    size = config.micro_batch
    events = read_events(folder, "micro_batch") if folder.is_dir() else []
    for event in events:
        is_for_this = event.get("conditions", memory_conditions(config)) == memory_conditions(config)
        if event.get("configured") in (config.micro_batch, size) and is_for_this:
            size = int(event["now"])
    return None if size == config.micro_batch else size


def memory_conditions(config: Config) -> dict[str, Any]:
    """The settings under which a micro_batch that did not fit into memory does not fit again."""
    return {"sequence_length": config.sequence_length, "recomputes": config.model.gradient_checkpointing}


def _since_given_up(events: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Who starts a run again that was given up has seen to it: it has all its tries again."""
    since = max((number for number, event in enumerate(events) if event["event"] == "gave_up"), default=-1)
    return events[since + 1 :]


def _num_restarts(events: Sequence[Mapping[str, Any]], window_hours: float, now: datetime) -> int:
    """Restarts within the window; a clock that was set far off makes them no fewer and no more to come."""
    restarts = (event for event in events if event["event"] == "restart")
    return sum(abs(now - _moment(event["time"])) <= timedelta(hours=window_hours) for event in restarts)


def _launches(events: Iterable[Mapping[str, Any]]) -> list[_Ended]:
    """The launches that the journal tells of, oldest first; at least one. One of which nothing is told is left out, but for the last."""
    found = [_Ended()]
    for event in events:
        kind, step = event["event"], event.get("step")
        if kind in ("launch", "restart") and found[-1] != _Ended():
            found.append(_Ended())
        here = found[-1]
        if kind in ("save", "stop", "resume", "train") and isinstance(step, int):
            here.reached = max(here.reached, step)
        if kind == "request" and event.get("do") == "stop":
            here.was_asked_to_stop = True
        if kind == "stop" and event.get("cause") == Cause.ROLLBACK:
            found.append(_Ended())  # it was started again at once
        elif kind == "stop" and _is_news(here, event):
            here.cause, here.words = str(event.get("cause")), str(event.get("reason") or "")
            here.step = step if isinstance(step, int) else here.step
    return found


def _is_news(launch: _Ended, stop: Mapping[str, Any]) -> bool:
    """Whether a process knows better why a launch ended than those before."""
    return launch.cause is None or (launch.cause in SECOND_HAND and stop.get("cause") not in SECOND_HAND)


def _same(launches: Sequence[_Ended]) -> int:
    """How many of the last launches, the last included, ended alike."""
    last = launches[-1]
    alike = (
        (one.cause, one.step, _without_numbers(one.words)) == (last.cause, last.step, _without_numbers(last.words))
        for one in reversed(launches)
    )
    return next((number for number, is_alike in enumerate(alike) if not is_alike), len(launches))


def _stuck(launches: Sequence[_Ended]) -> int:
    """How many launches in a row, the last included, came no further than those before them."""
    number, best = 0, -1
    for launch in launches:
        number = number + 1 if launch.reached <= best else 0
        best = max(best, launch.reached)
    return number


def _without_numbers(words: str) -> str:
    return _CHANGING.sub("#", words)[:200]


def _steps(checkpoints: Path) -> list[int]:
    try:
        names = os.listdir(checkpoints)
    except OSError:
        return []
    return sorted(int(match[1]) for name in names if (match := re.fullmatch(r"step-(\d+)", name)))


def _moment(time: str) -> datetime:
    return datetime.fromisoformat(time)
