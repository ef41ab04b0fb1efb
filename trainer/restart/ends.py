"""How a launch ended, for the table: from the journal, outcome.json and the disk."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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

_CHANGING = re.compile(r"0x[0-9a-f]+|\d+")
"""What differs between two tellings of one failure: addresses, process numbers, sizes."""


@dataclass
class _Ended:
    """One launch, as far as the journal tells of it."""

    cause: str | None = None
    words: str = ""
    step: int = 0
    reached: int = 0


def is_enabled(settings: RestartConfig, environment: Mapping[str, str]) -> bool:
    """Whether this launch is started again where it ends; under a scheduler, which does that itself, only where a person says so."""
    if settings.enabled != "auto":
        return settings.enabled is True
    return "SLURM_JOB_ID" not in environment and environment.get(SWITCH) != "off"


def end_of(config: Config, folder: Path, checkpoints: Path, now: datetime | None = None) -> End:
    """How the launch that has just ended did, of the run in `folder`."""
    events = read_events(folder)
    launches = _launches(events)
    last = launches[-1]
    outcome = read_outcome(folder) or {"outcome": Outcome.FAILED, "reason": "it said nothing", "step": last.reached}
    attempt = outcome.get("last_attempt")
    if attempt and attempt["time"] >= outcome["time"]:
        outcome = {**outcome, **attempt}
    steps = _steps(checkpoints)
    return End(
        outcome=Outcome(outcome["outcome"]),
        cause=last.cause or Cause.UNKNOWN,
        words=last.words or outcome["reason"],
        step=max(last.step, last.reached),
        num_same=_same(launches),
        num_stuck=_stuck(launches),
        num_restarts=_num_restarts(events, config.restart.window_hours, now or datetime.now(UTC)),
        micro_batch=config.micro_batch,
        lacks_room=outcome["outcome"] != Outcome.FINISHED and lacks_room(checkpoints),
        older_step=steps[-2] if len(steps) > 1 else None,
    )


def lacks_room(checkpoints: Path) -> bool:
    """Whether the disk has no room for a checkpoint as large as the newest."""
    steps = _steps(checkpoints)
    if not steps:
        return False
    try:
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


def _num_restarts(events: Sequence[Mapping[str, Any]], window_hours: float, now: datetime) -> int:
    """Restarts within the window since the run was given up last; a clock that was set far off makes them no fewer and no more to come."""
    since = max((number for number, event in enumerate(events) if event["event"] == "gave_up"), default=-1)
    restarts = (event for event in events[since + 1 :] if event["event"] == "restart")
    return sum(abs(now - _moment(event["time"])) <= timedelta(hours=window_hours) for event in restarts)


def _launches(events: Iterable[Mapping[str, Any]]) -> list[_Ended]:
    """The launches that the journal tells of, oldest first; at least one."""
    found = [_Ended()]
    for event in events:
        kind, step = event["event"], event.get("step")
        if kind == "launch" or kind == "restart":
            found.append(_Ended())
        here = found[-1]
        if kind in ("save", "stop", "resume", "train") and isinstance(step, int):
            here.reached = max(here.reached, step)
        is_told = here.cause is not None and here.cause not in SECOND_HAND
        if kind == "stop" and event.get("cause") == Cause.ROLLBACK:
            found.append(_Ended())  # it was started again at once
        elif kind == "stop" and not is_told:
            here.cause, here.words = str(event.get("cause")), str(event.get("reason") or "")
            here.step = step if isinstance(step, int) else here.step
    return found


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
