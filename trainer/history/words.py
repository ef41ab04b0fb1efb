"""An event of the journal in words, for a line of a list."""

import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainer.journal import JOURNAL, parse_event
from trainer.metrics.curves import lines_backward
from trainer.text import duration

ROUTINE = ("save", "prune", "mirror", "train", "hub")
"""Kinds of events that a sound run has all the time; they are in no list of what happened."""

_WORDS = {
    "launch": "launched: {command}",
    "start": "started: {machine}{fallback}",
    "preflight": "a step and an evaluation of full shape were tried",
    "request": "{by} asked for a {do} at step {step}",
    "fork": "a branch of {run} at step {step}",
    "waiting": "waits for {what}",
    "micro_batch": "goes on with micro_batch {now} instead of {was}: memory was too small",
    "mirror": "the copy of step {step} to {where} failed: {failure}",
    "initial_weights": "begins from the weights of {source}",
    "resume": "resumed from step {step}",
    "change": "changed since step {step}: {changes}",
    "save_failed": "the checkpoint of step {step} failed: {failure}",
    "not_saved": "no checkpoint of step {step}: {tensor} is not finite",
    "set_aside": "the checkpoint of step {step} was set aside: {reason}",
    "remove": "{name} was removed by a person",
    "rename": "was {was} before",
    "lost_history": "goes on at step {step} without its history: {lacking}",
    "refusal": "the checkpoint of step {step} was passed over: {reason}",
    "verdict": "{text}",
    "writer": "the writer process: {state}",
    "precision": "from step {step} on in {mode}: {reason}",
    "slow": "steps take {ratio} times as long from step {step} on: {reasons}",
    "slow_over": "no longer slow at step {step}, after {seconds}",
    "stop": "ended at step {step}, {cause}: {reason}",
    "restart": "restart {attempt} after {wait_seconds}: {words}",
    "gave_up": "is not restarted any more: {words}",
    "hang": "rank {rank} hung while {phase} at step {step}, for {seconds}",
    "skip": "the save of step {step} was left out, because the disk was behind",
    "bad_batch": "step {step} {skipped} ({kind}): loss {loss}, gradient norm {grad_norm}",
    "recompute": "step {step} computed once more: {found}",
    "rollback": "back from step {from_step} to {to_step}: {reason}",
    "digest_differs": "step {step}: the weights of ranks {ranks} differ",
    "alert_failed": "an alert ({kind}) was not sent to the {target}: {failure}",
}


def words(event: Mapping[str, Any]) -> str:
    """What an event says; of a kind that nobody here knows, its facts."""
    facts = {key: value for key, value in event.items() if key not in ("time", "event", "lost_events")}
    pattern = _WORDS.get(event["event"])
    if event["event"] == "start":
        asked, why = event.get("instead_of"), event.get("because")
        facts["fallback"] = f", in {event.get('precision')} instead of {asked}, because {why}" if asked else ""
    if event["event"] == "recompute":
        broken = f"other numbers on ranks {_shown('ranks', event.get('ranks') or '?')}, so a chip computes wrongly"
        facts["found"] = "the same numbers, so it is the data" if event.get("equal") else broken
    if event["event"] == "bad_batch":
        facts["skipped"] = "was skipped" if event.get("skipped") else "was told from the others"
    if pattern is None:
        return f"{event['event']}: " + ", ".join(f"{key} {_shown(key, value)}" for key, value in facts.items())
    return pattern.format_map(_Known({key: _shown(key, value) for key, value in facts.items()}))


class _Known(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return "?"


def _shown(key: str, value: Any) -> str:
    if value is None:
        return "no number"
    if isinstance(value, (int, float)) and key.endswith("seconds"):
        return duration(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(
            f"{name} {' -> '.join(map(str, pair)) if isinstance(pair, list) else pair}" for name, pair in value.items()
        )
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)


def moment(event: Mapping[str, Any]) -> datetime | None:
    """When it was written; None where it does not say so. A damaged one that names no zone is in UTC, as all are."""
    try:
        at = datetime.fromisoformat(event["time"])
    except (KeyError, TypeError, ValueError):
        return None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def number(event: Mapping[str, Any], name: str) -> float:
    """One of its numbers; 0 where it has none, or something else stands there."""
    value = event.get(name)
    return value if isinstance(value, (int, float)) and math.isfinite(value) else 0


def events_backward(folder: Path) -> Iterator[dict[str, Any]]:
    """The events of a run's journal, the last first; only what is asked for is read."""
    if (folder / JOURNAL).is_file():
        for _, line in lines_backward(folder / JOURNAL, None):
            if (event := parse_event(line)) is not None:
                yield event
