"""A run's account as one HTML page: losses with the events marked, effective time, speed, saves, and every list. It opens without a network."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer import plots
from trainer.history.account import KINDS, PARTS, Account, headline, percent, resumes, stops, when
from trainer.history.ledger import ASKED_FOR
from trainer.history.words import words
from trainer.metrics.binned import NUM_BINS, Curve, last_tokens, read_curve
from trainer.plots import COLOURS, MAX_POINTS, NUM_SMOOTH, Mark, Plot, extremes, line, means
from trainer.text import duration

_BLUE, _RED, _GREEN, _PINK, _ORANGE = COLOURS[:5]
_GREY = "#8c959f"

MOST_DOTS = 100
"""Evaluations that are drawn as a dot each."""

_METHOD = """Effective training time is the time of the steps that stand in the curve, each once, over the time from the first launch to the end
of the last, pauses that somebody asked for included. Steps taken again are those that a crash or a rollback undid. Faint lines are every step, or the least and the greatest
of neighbouring steps where there are too many to draw; strong lines are their mean. Times between launches are those of the machine's clock."""


def write_page(account: Account, path: Path) -> Path:
    """Writes the page to a file, or as report-NAME.html into a folder; returns where it lies. raises TrainerError"""
    name = account.folder.resolve().name
    return plots.write_page(plots.whole_page(_title(account), _body(account)), path, f"report-{name}.html")


def _title(account: Account) -> str:
    step = max(account.totals.step, account.outcome.get("step", 0))
    return f"{account.folder.resolve().name}: {account.outcome.get('outcome', 'unknown')} at step {step:,}"


def _body(account: Account) -> str:
    tokens = last_tokens(account.folder)
    curve = read_curve(account.folder, tokens / NUM_BINS) if tokens else None
    figures = "".join(plots.figure(plot) for plot in _plots(account, curve))
    said = [*headline(account).splitlines(), str(account.outcome.get("reason", ""))]
    box = "".join(f"<p>{html.escape(each)}</p>" for each in said if each)
    return f'<div class="verdict" style="border-color: {_BLUE}">{box}</div><div class="plots">{figures}</div>{_tables(account)}<footer>{_METHOD}</footer>'


def _plots(account: Account, curve: Curve | None) -> list[Plot]:
    """Every plot that something is known for."""
    unit, seconds = _unit(account)
    found = [_parts(account)]
    if curve is not None:
        steps, speed = curve.steps, curve.sums["tokens_per_second"]
        loss = Plot("Loss", "step", "nats per token", _losses(curve), is_wide=True, is_late=True, marks=_marks(account))
        pace = line("tokens/s", _BLUE, *means(steps, speed, curve.counts, MAX_POINTS // 5), width=1.4)
        effective = _effective(account, curve, seconds)
        found = [
            loss,
            Plot(
                "Effective training time so far", f"{unit} since the first launch", "percent", effective, from_zero=True
            ),
            *found,
            Plot("Speed", "step", "tokens per second", [pace], from_zero=True),
        ]
    written = [
        {**line("writing", _BLUE, *_saves(account, seconds), width=1.0), "mode": "markers", "marker": {"size": 4}}
    ]
    found.append(Plot("Saves", f"{unit} since the first launch", "seconds to write one", written, from_zero=True))
    return [plot for plot in found if any(len(each["x"]) for each in plot.lines)]


def _losses(curve: Curve) -> list[dict[str, Any]]:
    import numpy as np

    raw = extremes(curve.steps, curve.lowest, curve.highest)
    smooth = means(curve.steps, curve.sums["loss"], curve.counts, NUM_SMOOTH)
    lines = [line("training", _BLUE, *raw, width=0.8, opacity=0.28, is_faint=True)]
    lines.append(line("training", _BLUE, *smooth, width=2.4))
    known = np.isfinite(curve.tokens)
    evaluated = [(each.tokens, each.facts["val_loss"]) for each in curve.evaluations if "val_loss" in each.facts]
    if evaluated and known.any():
        tokens, values = zip(*evaluated[-MAX_POINTS:])
        steps = np.interp(tokens, curve.tokens[known], curve.steps[known])
        mode = "lines" if len(values) > MOST_DOTS else "lines+markers"
        lines.append({**line("validation", _ORANGE, steps, values, width=1.8), "mode": mode})
    return lines


def _marks(account: Account) -> list[Mark]:
    """The ends of launches, and what the guard did, at their steps."""
    marks = []
    for launch in account.ledger.launches:
        if launch.cause is not None and launch.step is not None and launch.cause != "finished":
            kind, colour = ("stopped on request", _GREY) if launch.cause in ASKED_FOR else ("stopped", _RED)
            marks.append(Mark(launch.step, kind, colour, f"{when(launch.at)} {launch.cause}: {launch.words}"[:200]))
    colours = {"bad_batch": COLOURS[5], "recompute": _GREEN, "rollback": _PINK, "digest_differs": "#000000"}
    for kind, heading in KINDS.items():
        for event in account.ledger.events.get(kind, []):
            step = event.get("step", event.get("from_step"))
            if isinstance(step, int):
                marks.append(Mark(step, heading, colours[kind], f"{when(event.get('time'))} {words(event)}"[:200]))
    return marks


def _effective(account: Account, curve: Curve, unit_seconds: float) -> list[dict[str, Any]]:
    """The share of the time that counts, at each save and now."""
    import numpy as np

    known = np.isfinite(curve.steps) & np.isfinite(curve.hours)
    ledger = account.ledger
    points = [(save.at, save.step) for save in ledger.saves[:: max(1, len(ledger.saves) // MAX_POINTS)]]
    points.append((ledger.wall_seconds, account.totals.step))
    at, steps = (np.array(each, float) for each in zip(*points))
    if not known.any() or not (at > 0).any():
        return []
    counted = 3600 * np.interp(steps, curve.steps[known], curve.hours[known])
    share = 100 * np.minimum(1.0, counted[at > 0] / at[at > 0])
    return [line("effective", _GREEN, at[at > 0] / unit_seconds, share, width=2.0)]


def _unit(account: Account) -> tuple[str, float]:
    """The unit of time that the run is told in, and its seconds."""
    return ("minutes", 60.0) if account.ledger.wall_seconds < 7200 else ("hours", 3600.0)


def _parts(account: Account) -> Plot:
    unit, unit_seconds = _unit(account)
    spent = {name: seconds for name, seconds in account.parts.items() if seconds > 0}
    colours = dict(zip(PARTS, (_GREEN, _RED, _BLUE, _ORANGE, _PINK, _GREY, "#c8ced4")))
    names, wall = list(spent)[::-1], account.ledger.wall_seconds or 1.0
    shown = [f"{duration(spent[name])} ({percent(spent[name] / wall)})" for name in names]
    bars = {"type": "bar", "orientation": "h", "y": [PARTS[name] for name in names], "text": shown, "hoverinfo": "text"}
    look = {"marker": {"color": [colours[name] for name in names]}, "showlegend": False}
    return Plot(
        "Where the time went", unit, "", [{**bars, **look, "x": [spent[name] / unit_seconds for name in names]}]
    )


def _saves(account: Account, unit_seconds: float) -> tuple[list[float], list[float]]:
    saves = account.ledger.saves
    return [save.at / unit_seconds for save in saves], [save.seconds for save in saves]


def _tables(account: Account) -> str:
    """Every list of the account, whole."""
    ledger = account.ledger
    costs = [
        (
            cost.cause,
            str(cost.stops),
            f"{cost.lost_steps:,}",
            *map(duration, (cost.lost_seconds, cost.down_seconds, cost.start_seconds)),
        )
        for cost in ledger.costs
    ]
    parts = [
        _table("Lost by cause", ("cause", "stops", "steps taken again", "training", "down", "starting"), costs),
        _table("Stops", ("when", "where", "cause", "in words"), stops(ledger)),
        _table("Resumes", ("from", "verdict", "in words"), resumes(ledger)),
    ]
    for kind, heading in KINDS.items():
        events = [(when(event.get("time")), words(event)) for event in ledger.events.get(kind, [])]
        parts.append(_table(heading.capitalize(), ("when", "what"), events))
    return "".join(parts)


def _table(heading: str, head: Sequence[str], rows: Sequence[tuple[str, ...]]) -> str:
    return f"<h2>{heading} ({len(rows)})</h2>{plots.table_html(head, rows, look='list')}" if rows else ""
