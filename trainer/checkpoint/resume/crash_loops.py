"""Which checkpoints are suspect: starts from them die again and again, at the same step, of the trainer's own failure.

Every byte of such a checkpoint may be right and the state in it still be one that cannot be continued. A pure function of the
journal, whose docstring says what `start`, `resume`, `save` and `stop` state. What counts, and why:

    counts         a stop by `exception` or `fault` at a known step: replaying is exact, so the same state dies in the same place
    breaks a row   a death at another step (it starts a new row), and a start that got past the step, as its stop or a save of it shows
    says nothing   any other end before that step (SIGKILL, SIGTERM, SIGINT, SIGHUP, a disk that is full or broken, refused, finished,
                   interrupted, diverged, no stop event at all): the checkpoint was not put to the proof
    is forgotten   when a checkpoint of the same step with another digest takes its place, and when the fingerprint of a start is
                   another than before: who fixed the code wants to go on from the newest
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.ending.causes import OWN_FAILURES, SECOND_HAND

NUM_DEATHS = 3


@dataclass
class _Row:
    """Deaths in a row at one step, of starts from one checkpoint."""

    digest: str | None
    died_at: int | None = None
    num_deaths: int = 0
    reason: str = ""


@dataclass
class _Start:
    """One start from a checkpoint, as far as the journal shows it."""

    step: int
    digest: str | None
    reached: int
    stop: Mapping[str, Any] | None = None
    """The first stop that knows its cause, and is not the echo of another process's."""


def suspects(
    events: Iterable[Mapping[str, Any]], digests: Mapping[int, str] | None = None, num_deaths: int = NUM_DEATHS
) -> dict[int, str]:
    """The steps of the checkpoints that `latest` should pass over, each with the reason as a sentence's end.

    events      the journal's, oldest first, those of the start that asks included
    digests     step -> digest of the manifest.json on disk now; rows of another checkpoint are left out. None: not compared
    num_deaths  starts in a row that make a checkpoint suspect
    """
    rows: dict[int, _Row] = {}
    current: _Start | None = None
    fingerprint = None
    for event in events:
        kind, step = event.get("event"), event.get("step")
        if kind == "start":
            _judge(rows, current)
            current = None
            if fingerprint not in (None, event.get("fingerprint")):
                rows.clear()
            fingerprint = event.get("fingerprint")
        elif kind == "resume" and isinstance(step, int):
            _judge(rows, current)
            current = _Start(step, event.get("digest"), reached=step)
        elif kind == "save" and isinstance(step, int):
            if step in rows and rows[step].digest != event.get("digest"):
                del rows[step]
            if current:
                current.reached = max(current.reached, step)
        elif kind == "stop" and current:
            _hear(current, event)
    _judge(rows, current)
    return {
        step: f"its last {row.num_deaths} starts that got so far all died at step {row.died_at} ({row.reason})"
        for step, row in rows.items()
        if row.num_deaths >= num_deaths and (digests is None or digests.get(step) == row.digest)
    }


def _hear(start: _Start, stop: Mapping[str, Any]) -> None:
    if isinstance(stop.get("step"), int):
        start.reached = max(start.reached, stop["step"])
    if start.stop is None and stop.get("cause") not in SECOND_HAND:
        start.stop = stop


def _judge(rows: dict[int, _Row], start: _Start | None) -> None:
    """Adds what one start, now over, says about its checkpoint."""
    if start is None:
        return
    row = rows.get(start.step)
    if row is None or row.digest != start.digest:
        row = rows[start.step] = _Row(start.digest)
    stop = start.stop or {}
    died_at = stop.get("step") if stop.get("cause") in OWN_FAILURES else None
    if isinstance(died_at, int):
        row.num_deaths = row.num_deaths + 1 if row.died_at == died_at else 1
        row.died_at, row.reason = died_at, str(stop.get("reason") or stop["cause"])
    elif row.died_at is not None and start.reached > row.died_at:
        rows[start.step] = _Row(start.digest)


def all_suspect_text(folder: Path, reasons: Mapping[int, str]) -> str:
    """The error where every sound checkpoint is suspect: going further back would not help, and says so."""
    told = "; ".join(f"step {step}: {reason}" for step, reason in sorted(reasons.items(), reverse=True))
    return (
        f"{folder} holds {len(reasons)} sound checkpoints and all are suspect ({told}); the cause is then not in the checkpoints but in "
        "the code, the data, the settings or the machine: fix what these errors name, then go on with "
        f"resume_from_checkpoint={max(reasons)}, which is taken as it is"
    )
