"""How runs stand, on a terminal: one on a screen, all in a table; and for programs, a line of JSON each."""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timedelta

from trainer.history.standing import Standing
from trainer.text import SKEW_SECONDS, age, count, duration, numbered, size, table

_LABEL, _HEAD_LINES = 12, 3


def as_json(standing: Standing) -> str:
    """One line."""
    return json.dumps(asdict(standing))


def screen(standing: Standing, now: datetime, width: int) -> str:
    """One run on one screen: no line is wider, and what has no room is cut."""
    rows = [
        ("alive", _alive(standing, now)),
        ("computes", _machine(standing)),
        ("supervised", _supervised(standing, now)),
        ("progress", _progress(standing)),
        ("left", _left(standing, now)),
        ("speed", _speed(standing)),
        ("loss", _loss(standing)),
        ("last save", _last_save(standing)),
        ("at risk", _at_risk(standing)),
        ("disk", _disk(standing)),
        *(("GPU" if place else "GPUs", words) for place, words in enumerate(map(_gpu, standing.gpus))),
    ]
    head = f"{standing.name}: {standing.state}" + (f" ({standing.reason})" if standing.reason else "")
    lines = textwrap.wrap(
        " ".join(head.split()), width, max_lines=_HEAD_LINES, placeholder=" ...", subsequent_indent="  "
    )
    lines += [f"  {label:{_LABEL}}{words}" for label, words in rows if words]
    if standing.events:
        lines += ["", "  last events"]
        lines += [
            f"    {_since(event['time'], now):>12}  {' '.join(event['words'].split())}" for event in standing.events
        ]
    return "\n".join(_cut(line, width) for line in lines)


def summary(standing: Standing, now: datetime) -> str:
    """One run in one line: the daily message."""
    restarts = numbered(standing.num_restarts, "restart") + " in 24 hours" if standing.num_restarts else ""
    facts = (
        standing.state,
        _progress(standing),
        _left(standing, now),
        _speed(standing),
        f"loss {loss}" if (loss := _loss(standing)) else "",
        f"last save: {_last_save(standing)}",
        restarts,
        f"disk: {_disk(standing)}",
    )
    return "; ".join(" ".join(fact.split()) for fact in facts if fact)


def _rounded(seconds: float) -> str:
    return duration(round(seconds))


def _ago(seconds: float) -> str:
    """When something of this age was, in whole seconds."""
    return age(seconds) if seconds <= -SKEW_SECONDS else f"{_rounded(seconds)} ago"


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else line[: width - 3] + "..."


def _since(at: str | None, now: datetime) -> str:
    try:
        return _ago((now - datetime.fromisoformat(at or "")).total_seconds())
    except ValueError:
        return "?"


def _alive(standing: Standing, now: datetime) -> str:
    since = f", started {_since(standing.launched_at, now)}" if standing.launched_at else ""
    if standing.is_alive:
        return f"yes, {standing.where}{since}"
    last = f"; the last was {standing.where}{since}" if standing.where else since
    return ("no" if standing.is_alive is False else "nobody can know") + last


def _machine(standing: Standing) -> str:
    if standing.machine is None:
        return ""
    return f"{standing.machine}, in {'fp32' if standing.precision == 'no' else standing.precision}"


def _supervised(standing: Standing, now: datetime) -> str:
    restarts = f"; {standing.num_restarts} restarts within a day" if standing.num_restarts else ""
    if standing.supervised_by is None:
        return restarts.removeprefix("; ")
    return f"by {standing.supervised_by}, since {_since(standing.supervised_since, now).removesuffix(' ago')}{restarts}"


def _progress(standing: Standing) -> str:
    parts = [f"step {standing.step:,}" + (f" of {standing.max_steps:,}" if standing.max_steps else "")]
    if standing.fraction is not None:
        parts[0] += f" ({standing.fraction:.1%})".replace("%", " %")
    if standing.tokens:
        parts.append(f"{count(standing.tokens)} tokens")
    if standing.last_step_seconds_ago is not None:
        parts.append(f"last written {_ago(standing.last_step_seconds_ago)}")
    return ", ".join(parts)


def _left(standing: Standing, now: datetime) -> str:
    if standing.seconds_left is None:
        return ""
    ends = (now + timedelta(seconds=standing.seconds_left)).astimezone()
    return f"{_rounded(standing.seconds_left)}, ends {ends:%a %d %b %H:%M}, by the speed of the last steps"


def _speed(standing: Standing) -> str:
    parts = []
    if standing.tokens_per_second is not None:
        parts.append(f"{count(standing.tokens_per_second)} tokens/s")
    if standing.step_seconds is not None:
        parts.append(f"{duration(standing.step_seconds)} a step")
    if standing.mfu is not None:
        parts.append(f"MFU {standing.mfu:.1%}".replace("%", " %"))
    if standing.slowdown is not None and standing.slowdown > 1.2:
        parts.append(f"{standing.slowdown:.1f} times as slow as it was")
    return ", ".join(parts)


def _loss(standing: Standing) -> str:
    parts = [] if standing.loss is None else [f"{standing.loss:.4f}"]
    if standing.val_loss is not None:
        parts.append(f"validation {standing.val_loss:.4f} at step {standing.val_step:,}")
    return ", ".join(parts)


def _last_save(standing: Standing) -> str:
    if standing.saved_step is None:
        return "none yet"
    when = "" if standing.saved_seconds_ago is None else f", {_ago(standing.saved_seconds_ago)}"
    return f"step {standing.saved_step:,}{when}" + (f" ({size(standing.saved_bytes)})" if standing.saved_bytes else "")


def _at_risk(standing: Standing) -> str:
    parts = []
    if standing.lost_now_seconds is not None:
        parts.append(f"{_rounded(standing.lost_now_seconds)} of training if the machine died now")
    if standing.worst_lost_work_seconds is not None:
        parts.append(f"{_rounded(standing.worst_lost_work_seconds)} at worst")
    return "; ".join(parts)


def _disk(standing: Standing) -> str:
    free = "" if standing.disk_free_bytes is None else f"{size(standing.disk_free_bytes)} free for checkpoints"
    days = standing.disk_days_until_full
    if days is None:
        return free
    ends = standing.seconds_left
    fate = "" if ends is None else ", after the run ends" if 86400 * days > ends else ", BEFORE the run ends"
    return f"{free}; full in {duration(86400 * days)}{fate}"


def _gpu(gpu: dict[str, float]) -> str:
    parts = [f"{gpu['gpu']:.0f}:"]
    if "utilization_fraction" in gpu:
        parts.append(f"{gpu['utilization_fraction']:4.0%}".replace("%", " %"))
    if "memory_bytes" in gpu:
        parts.append(size(gpu["memory_bytes"]))
    if "temperature_celsius" in gpu:
        parts.append(f"{gpu['temperature_celsius']:.0f} C")
    if "power_watts" in gpu:
        parts.append(f"{gpu['power_watts']:.0f} W")
    parts += [f"slowed by {what}" for what in ("heat", "power") if gpu.get(f"slowed_by_{what}")]
    return "  ".join(parts)


COLUMNS = ("run", "state", "step", "of", "done", "loss", "tokens/s", "left", "written", "saved", "restarts")
_DROPPED = ("restarts", "saved", "of", "tokens/s", "loss", "written")
"""Columns that go where there is no room for them, the first first."""


def listing(all_runs: Sequence[Standing], width: int) -> str:
    """Every run in a line."""
    rows = [_row(standing) for standing in all_runs]
    columns = list(COLUMNS)
    for dropped in ("", *_DROPPED):
        columns = [name for name in columns if name != dropped]
        shown = table([columns, *([row[name] for name in columns] for row in rows)], indent="")
        if max(map(len, shown.splitlines())) <= width:
            break
    return "\n".join(_cut(line, width) for line in shown.splitlines())


def _row(standing: Standing) -> dict[str, str]:
    done, speed, left = standing.fraction, standing.tokens_per_second, standing.seconds_left
    since = standing.last_step_seconds_ago
    return {
        "run": standing.name,
        "state": standing.state,
        "step": f"{standing.step:,}",
        "of": f"{standing.max_steps:,}" if standing.max_steps else "-",
        "done": "-" if done is None else f"{done:.1%}".replace("%", " %"),
        "loss": "-" if standing.loss is None else f"{standing.loss:.3f}",
        "tokens/s": "-" if speed is None else count(speed),
        "left": "-" if left is None else _rounded(left),
        "written": "-" if since is None else _ago(since),
        "saved": "-" if standing.saved_seconds_ago is None else _ago(standing.saved_seconds_ago),
        "restarts": str(standing.num_restarts) if standing.num_restarts else "-",
    }
