"""A run's account: its effective training time, what was lost by what cause, every stop and resume; as text and for programs."""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainer.ending.outcome_file import read_outcome
from trainer.errors import LaunchError
from trainer.history.ledger import KEPT, Launch, Ledger, ledger_of
from trainer.history.words import words
from trainer.journal import events_from
from trainer.locks import is_trained
from trainer.metrics.curves import CURVE
from trainer.metrics.totals import Totals, totals_of
from trainer.text import count, duration, numbered, table

MOST_LISTED = 20
"""Of stops, resumes and skips, how many of the last ones the text lists; `--json` and the page have all."""

KINDS = {
    "bad_batch": "bad batches",
    "recompute": "steps computed once more",
    "rollback": "rollbacks",
    "digest_differs": "ranks that differed",
}
"""Kinds of events that the account lists, as headings."""


@dataclass(frozen=True)
class Account:
    """What a run's folder says of what happened."""

    folder: Path
    outcome: dict[str, Any]
    """What outcome.json says; empty where there is none."""
    totals: Totals
    ledger: Ledger

    @property
    def effective_fraction(self) -> float | None:
        """Share (0..1) of the wall time in which steps were taken that count; None where the journal tells no time."""
        wall = self.ledger.wall_seconds
        return min(1.0, self.totals.seconds / wall) if wall > 0 else None

    @property
    def parts(self) -> dict[str, float]:
        """Where the wall time went, in seconds."""
        ledger = self.ledger
        known = {
            "counted": self.totals.seconds,
            "lost": ledger.lost_seconds,
            "evaluating": self.totals.evaluation_seconds,
            "starting": ledger.start_seconds,
            "down": ledger.down_seconds(asked_for=False),
            "stopped": ledger.down_seconds(asked_for=True),
        }
        return {**known, "other": max(0.0, ledger.wall_seconds - sum(known.values()))}

    @property
    def is_on_cpu(self) -> bool:
        return all("CPU" in launch.machine for launch in self.ledger.launches)

    @property
    def process_hours(self) -> float:
        """Hours of all launches, times their processes; on GPUs that is GPU-hours."""
        return self.ledger.process_seconds / 3600


def account_of(folder: Path) -> Account:
    """Reads a run's folder; of a run that is alive, up to now."""
    totals = totals_of(folder / CURVE)
    curve = folder / CURVE
    last_sign = datetime.fromtimestamp(curve.stat().st_mtime, UTC) if curve.is_file() else None
    try:
        now = datetime.now(UTC) if is_trained(folder) else None
    except LaunchError:  # nobody can know
        now = None
    step_seconds = totals.seconds / totals.step if totals.step else 0.0
    ledger = ledger_of(events_from(folder), now=now, last_sign=last_sign, step_seconds=step_seconds)
    return Account(folder, read_outcome(folder) or {}, totals, ledger)


PARTS = {
    "counted": "steps that count",
    "lost": "steps taken again",
    "evaluating": "evaluating",
    "starting": "starting",
    "down": "down after a failure",
    "stopped": "stopped on request",
    "other": "saving, sampling, the rest",
}


def percent(fraction: float | None) -> str:
    return "unknown" if fraction is None else f"{100 * fraction:.1f} %"


def headline(account: Account) -> str:
    """Effective training time, processes' hours and exactness, as lines."""
    ledger, (exact, judged) = account.ledger, account.ledger.exactness
    wall, hours = (
        ledger.wall_seconds,
        f"{count(account.process_hours)} {'process' if account.is_on_cpu else 'GPU'}-hours",
    )
    effective, starts = percent(account.effective_fraction), numbered(len(ledger.launches), "start")
    lines = [f"effective training time {effective} of {duration(wall)}, in {starts}; {hours}"]
    if ledger.resumes:
        others = len(ledger.resumes) - judged
        compared = f"exact {exact}/{judged}" if judged else "none with steps to compare"
        lines.append(
            f"resumes {len(ledger.resumes)}: {compared}" + (f", {others} without" if judged and others else "")
        )
    return "\n".join(lines)


def brief(account: Account) -> str:
    """The account in a few lines: how much of the time counts, where the rest went, and what each cause cost."""
    wall = account.ledger.wall_seconds
    if not account.ledger.launches or wall <= 0:
        return ""
    spent = [(PARTS[name], seconds) for name, seconds in account.parts.items() if seconds >= 0.0005 * wall]
    rows = [("where the time went", "", "")] + [(name, duration(each), percent(each / wall)) for name, each in spent]
    return "\n\n".join(part for part in (headline(account), table(rows), _costs(account)) if part)


def _costs(account: Account) -> str:
    costs = account.ledger.costs
    if not costs:
        return ""
    rows: list[tuple[object, ...]] = [("lost by cause", "stops", "steps", "training", "down", "starting")]
    for cost in costs:
        times = map(duration, (cost.lost_seconds, cost.down_seconds, cost.start_seconds))
        rows.append((cost.cause, cost.stops, f"{cost.lost_steps:,}", *times))
    return table(rows)


def text(account: Account, width: int = 100) -> str:
    """The account whole: also every stop, every resume with its verdict, and what the guard did."""
    ledger = account.ledger
    lists: dict[str, Sequence[tuple[str, ...]]] = {"stops": stops(ledger), "resumes": resumes(ledger)}
    for kind, heading in KINDS.items():
        lists[heading] = [_line(event) for event in ledger.events.get(kind, [])]
    return "\n\n".join(part for part in (brief(account), *(listed(*each, width) for each in lists.items())) if part)


def stops(ledger: Ledger) -> list[tuple[str, str, str, str]]:
    """(when, step, cause, words) of every end."""
    ended = [launch for launch in ledger.launches if launch.cause is not None]
    return [(when(launch.at), _step(launch.step), str(launch.cause), _one_line(launch.words)) for launch in ended]


def resumes(ledger: Ledger) -> list[tuple[str, str, str]]:
    """(step, short verdict, words) of every resume."""
    return [(_step(launch.resumed_at), *_verdict(launch)) for launch in ledger.resumes]


def _verdict(launch: Launch) -> tuple[str, str]:
    said = launch.verdict or ""
    if launch.is_exact:
        return f"exact {said.partition('exact: ')[2].partition(' ')[0]}", said
    if launch.is_exact is not None:
        return "NOT exact", said
    return ("not compared", launch.replay) if launch.replay else ("nothing to compare", "")


def _line(event: dict[str, Any]) -> tuple[str, str]:
    return when(event.get("time")), _one_line(words(event))


def listed(heading: str, rows: Sequence[tuple[str, ...]], width: int) -> str:
    """The last rows of a list under a heading, which says how many there are; the last column is wrapped."""
    if not rows:
        return ""
    shown = rows[-MOST_LISTED:]
    more = f", the last {MOST_LISTED}" if len(rows) > MOST_LISTED else ""
    widths = [max(len(row[place]) for row in shown) for place in range(len(rows[0]) - 1)]
    lines = [f"  {heading} ({len(rows)}{more})"]
    for *cells, said in shown:
        begin = "    " + "".join(f"{cell:{wide}}  " for cell, wide in zip(cells, widths) if wide)
        lines.append(
            textwrap.fill(
                said or "-", max(width, len(begin) + 20), initial_indent=begin, subsequent_indent=" " * len(begin)
            )
        )
    return "\n".join(lines)


def when(at: str | None) -> str:
    """A moment on the clock of this place."""
    try:
        return datetime.fromisoformat(at or "").astimezone().strftime("%d %b %H:%M:%S")
    except ValueError:
        return "?"


def _step(step: int | None) -> str:
    return "?" if step is None else f"step {step}"


def _one_line(said: str) -> str:
    return " ".join(said.split())


def facts(account: Account) -> dict[str, Any]:
    """The account for programs."""
    ledger, outcome, totals, (exact, judged) = account.ledger, account.outcome, account.totals, account.ledger.exactness
    last = totals.last_evaluation or {}
    losses = totals.recent_losses
    return {
        "name": account.folder.resolve().name,
        "folder": str(account.folder),
        "outcome": outcome.get("outcome"),
        "reason": outcome.get("reason"),
        "step": max(totals.step, outcome.get("step", 0))
        if outcome.get("outcome") == "running"
        else outcome.get("step"),
        "tokens": totals.tokens,
        "loss": sum(losses) / len(losses) if losses else None,
        "val_loss": last.get("val_loss"),
        "val_step": last.get("step"),
        "bits_per_byte": last.get("bits_per_byte"),
        "tokens_per_second": totals.tokens_per_second,
        "began": ledger.began_at,
        "wall_seconds": ledger.wall_seconds,
        "effective_fraction": account.effective_fraction,
        "seconds": account.parts,
        "process_hours": account.process_hours,
        "gpu_hours": None if account.is_on_cpu else account.process_hours,
        "launches": [asdict(launch) for launch in ledger.launches],
        "lost_by_cause": [asdict(cost) for cost in ledger.costs],
        "lost_steps": ledger.lost_steps,
        "resumes": {"number": len(ledger.resumes), "compared": judged, "exact": exact},
        "saves": ledger.num_saves,
        **{kind: ledger.events.get(kind, []) for kind in KEPT},
    }


def to_json(account: Account) -> str:
    return json.dumps(facts(account), indent=1)
