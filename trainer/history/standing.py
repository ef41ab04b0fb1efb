"""How a run stands now, from the ends of its files: what a month of steps wrote before is not read."""

import math
import os
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from trainer import files
from trainer.config.load import read_settings
from trainer.ending.outcome_file import read_outcome
from trainer.ending.outcomes import Outcome
from trainer.errors import LaunchError, TrainerError
from trainer.history.words import ROUTINE, events_backward, moment, number, words
from trainer.lease import holder
from trainer.locks import is_trained, supervisor_of
from trainer.metrics.curves import CURVE, last_records, newest_value, records_backward
from trainer.metrics.index import INDEX

NUM_EVENTS = 8
"""Of what happened last, how much is shown."""
RECENT_STEPS = 50
"""Steps that the speed is a median of."""
MOST_EVENTS = 20_000
"""Of the journal, read from its end; a launch of two weeks has a save a minute."""


@dataclass
class Standing:
    """How a run stands. Of what is not known there is None."""

    name: str
    folder: str
    state: str
    """An outcome (ending/outcomes.py), or `killed`: it says `running`, and no process trains it; or `restarting`: a supervisor waits."""
    reason: str
    is_alive: bool | None
    where: str | None = None
    """The process that trains it, or was the last to."""
    machine: str | None = None
    precision: str | None = None
    launched_at: str | None = None
    """Of the last start; ISO 8601, as every `_at`."""
    supervised_by: str | None = None
    supervised_since: str | None = None
    num_restarts: int = 0
    """Within the last 24 hours."""
    step: int = 0
    max_steps: int | None = None
    tokens: int | None = None
    last_step_seconds_ago: float | None = None
    loss: float | None = None
    val_loss: float | None = None
    val_step: int | None = None
    tokens_per_second: float | None = None
    step_seconds: float | None = None
    mfu: float | None = None
    slowdown: float | None = None
    seconds_left: float | None = None
    """At the speed of the last steps, without evaluations and saves."""
    saved_step: int | None = None
    saved_seconds_ago: float | None = None
    saved_bytes: int | None = None
    lost_now_seconds: float | None = None
    """Training that would be lost if the machine died now."""
    worst_lost_work_seconds: float | None = None
    """The most that could have been lost at any moment of this launch or the one before."""
    overhead_fraction: float | None = None
    disk_free_bytes: int | None = None
    disk_days_until_full: float | None = None
    gpus: list[dict[str, float]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    """What happened last, the newest first: time, event, words."""

    @property
    def fraction(self) -> float | None:
        """Share (0..1) of the steps that are taken."""
        return min(1.0, self.step / self.max_steps) if self.max_steps else None


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's."""
    return any((folder / name).is_file() for name in ("config.yaml", "outcome.json", "journal.jsonl"))


def standings(runs: Path, now: datetime) -> list[Standing]:
    """Every run of a folder, those that are alive first, then by when they last wrote a step."""
    found = (
        [standing_of(path, now) for path in sorted(runs.iterdir()) if path.is_dir() and is_run(path)]
        if runs.is_dir()
        else []
    )
    return sorted(found, key=lambda each: (not each.is_alive, each.last_step_seconds_ago or math.inf))


def standing_of(folder: Path, now: datetime) -> Standing:
    """Reads a run's folder; what is damaged or absent is left out."""
    outcome, alive = read_outcome(folder) or {}, _is_alive(folder)
    state = str(outcome.get("outcome", "unknown"))
    supervisor = supervisor_of(folder)
    if alive is False and supervisor and state != Outcome.FINISHED:
        state = "restarting"
    elif alive is False and state == Outcome.RUNNING:
        state = "killed"
    standing = Standing(folder.resolve().name, str(folder), state, str(outcome.get("reason", "")), alive)
    standing.step = outcome.get("step", 0)
    who = holder(folder / ".lock")
    standing.where = str(who) if who else None
    if supervisor:
        standing.supervised_by, standing.supervised_since = str(supervisor[0]), supervisor[1]
    settings = _settings(folder)
    standing.max_steps = int(number(settings, "max_steps")) or None
    _read_curve(standing, folder, now)
    _read_journal(standing, folder, now)
    checkpoints = (
        files.project_folder() / str(settings.get("checkpoints_folder", "checkpoints")) / folder.resolve().name
    )
    standing.disk_free_bytes = files.free_bytes(checkpoints)
    if standing.max_steps and standing.step_seconds and alive:
        standing.seconds_left = max(0, standing.max_steps - standing.step) * standing.step_seconds
    return standing


def _is_alive(folder: Path) -> bool | None:
    try:
        return is_trained(folder)
    except LaunchError:
        return None


def _settings(folder: Path) -> dict[str, Any]:
    try:
        return read_settings(folder / "config.yaml")
    except TrainerError:
        return {}


def _read_curve(standing: Standing, folder: Path, now: datetime) -> None:
    """The last steps, and of numbers that not every step has the newest."""
    path = folder / CURVE
    records = last_records(path)
    if not records:
        return
    steps = [record for record in records if "loss" in record]
    if steps:
        last = steps[0]
        recent = steps[:RECENT_STEPS]
        # After a kill the outcome may be behind the curve, and where nothing more was trained since, ahead of it.
        standing.step = max(standing.step, last["step"]) if standing.state in ("running", "killed") else standing.step
        standing.tokens, standing.loss = last.get("tokens"), last.get("loss")
        for name in ("step_seconds", "tokens_per_second", "mfu"):
            values = [record[name] for record in recent if isinstance(record.get(name), (int, float))]
            setattr(standing, name, statistics.median(values) if values else None)
    standing.last_step_seconds_ago = max(0.0, now.timestamp() - os.stat(path).st_mtime)
    standing.slowdown = newest_value(records, "speed/slowdown")
    standing.worst_lost_work_seconds = newest_value(records, "checkpoint/worst_lost_work_seconds")
    standing.overhead_fraction = newest_value(records, "checkpoint/overhead_fraction")
    standing.disk_days_until_full = newest_value(records, "disk/days_until_full")
    standing.gpus = _gpus(records)
    evaluation = _last_evaluation(records, folder)
    standing.val_loss, standing.val_step = evaluation.get("val_loss"), evaluation.get("step")


def _gpus(records: Iterable[Mapping[str, Any]]) -> list[dict[str, float]]:
    """What was last sampled of each, by its number."""
    sampled = next((record for record in records if any(key.startswith("gpu/") for key in record)), {})
    found: dict[int, dict[str, float]] = {}
    for key, value in sampled.items():
        group, name, number = (*key.split("/"), "", "")[:3]
        if group == "gpu" and number.isdigit() and value is not None:
            found.setdefault(int(number), {"gpu": int(number)})[name] = value
    return [found[number] for number in sorted(found)]


def _last_evaluation(records: Iterable[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """The newest, from the end of the curve, or of its index where that is long."""
    found = next((record for record in records if "val_loss" in record), None)
    blocks = (block for _, block in islice(records_backward(folder / INDEX), 200))
    return found or next((block["evaluations"][-1] for block in blocks if block.get("evaluations")), {})


def _read_journal(standing: Standing, folder: Path, now: datetime) -> None:
    """The last events, the last save, and the last start."""
    is_started = False
    for event in islice(events_backward(folder), MOST_EVENTS):
        kind, at = event["event"], moment(event)
        seconds_ago = (now - at).total_seconds() if at else None
        if kind == "save" and standing.saved_step is None:
            standing.saved_step, standing.saved_bytes = event.get("step"), event.get("bytes")
            standing.saved_seconds_ago = seconds_ago
            if standing.is_alive and seconds_ago is not None:
                standing.lost_now_seconds = seconds_ago + number(event, "seconds")
        elif kind == "start" and not is_started:
            is_started = True
            standing.launched_at, standing.machine = event.get("time"), event.get("machine")
            standing.precision = event.get("precision")
        elif kind == "train" and not is_started:
            before = number(event, "worst_seconds")
            standing.worst_lost_work_seconds = max(standing.worst_lost_work_seconds or 0.0, before)
        elif kind == "restart" and seconds_ago is not None and seconds_ago <= 86400:
            standing.num_restarts += 1
        if kind not in ROUTINE and len(standing.events) < NUM_EVENTS:
            standing.events.append({"time": event.get("time"), "event": kind, "words": words(event)})
        if is_started and len(standing.events) >= NUM_EVENTS and (seconds_ago or 0.0) > 86400:
            break
    if standing.lost_now_seconds is not None:
        worst = max(standing.worst_lost_work_seconds or 0.0, standing.lost_now_seconds)
        standing.worst_lost_work_seconds = worst


def present() -> datetime:
    """Now, by the clock on the wall."""
    return datetime.now(UTC)
