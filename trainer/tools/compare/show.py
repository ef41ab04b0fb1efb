"""A comparison as text for a person, and as JSON for a program. The verdicts come last, where the eye is."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from trainer.checkpoint.inspect.show import short
from trainer.text import count, duration, table
from trainer.tools.compare.align import common_span, hours_to_reach, losses_by_hours, num_segments, segments
from trainer.tools.compare.judge import Comparison, Judged, Pair, series
from trainer.tools.compare.runs import (
    Run,
    same_training_data,
    same_vocabulary,
    setting_differences,
    version_differences,
)

NUM_ROWS = 8
"""Lines of a table of losses."""
_SHARE_AT_THE_END = 0.05
_UNKNOWN = "unknown"


def text(comparison: Comparison) -> str:
    """The whole comparison."""
    runs, pairs = comparison.runs, comparison.pairs
    names = [run.name for run in runs]
    parts = [table([(run.name, run.folder) for run in runs], indent=""), table([("", *names), *facts(runs)], indent="")]
    if differing := differences(runs):
        parts.append(table([("setting", *names), *differing], indent=""))
    if rows := _by_tokens(pairs):
        parts.append(f"training loss by tokens, mean since the row above; * beyond noise (95 %)\n{table(rows)}")
    if rows := _by_hours(runs):
        parts.append(f"training loss by time of training, mean since the row above\n{table(rows)}")
    return "\n\n".join(parts + ["\n".join(sentences(pair)) for pair in pairs])


def facts(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """What is known of each run: one row a fact, one cell a run; rows about which nothing is known are left out."""
    until_target = []
    if (target := _loss_at_the_end(runs[0])) is not None:
        until_target = [(f"time until {target:.4f}", [_duration(_seconds_to(run, target)) for run in runs])]
    evaluated = dict.fromkeys(name for run in runs for evaluation in run.curve.evaluations for name in evaluation.facts)
    rows = [
        ("outcome", [run.outcome for run in runs]),
        *([("began from", [_began_from(run) for run in runs])] if any(run.initial_weights for run in runs) else []),
        *([("branch of", [_branch(run) for run in runs])] if any(run.branch for run in runs) else []),
        ("precision", [_precision(run.precision) for run in runs]),
        ("processes", [run.processes for run in runs]),
        ("machine", [run.machine for run in runs]),
        ("steps", [f"{run.curve.num_steps:,}" for run in runs]),
        ("tokens", [count(run.curve.last_tokens) for run in runs]),
        ("time of training", [_duration(run.curve.seconds) for run in runs]),
        ("tokens/s, median", [_number(run.curve.medians["tokens_per_second"], count) for run in runs]),
        ("MFU, median", [_number(run.curve.medians["mfu"], _percent) for run in runs]),
        ("training loss, last 5 %", [_number(_loss_at_the_end(run), "{:.4f}".format) for run in runs]),
        *until_target,
        *((_named(name, "last"), [_number(_last(run, name), "{:.4f}".format) for run in runs]) for name in evaluated),
        ("validation loss, best", [_number(_best(run), "{:.4f}".format) for run in runs]),
    ]
    return [(name, *cells) for name, cells in rows if set(cells) != {_UNKNOWN}]


def _began_from(run: Run) -> str:
    begun = run.initial_weights
    return f"{short(begun['source'])} (weights {begun['digest']})" if begun else "random weights"


def _branch(run: Run) -> str:
    return f"{run.branch[0]} at step {run.branch[1]}, where its curve begins" if run.branch else "no other run"


def _precision(words: str) -> str:
    return ", then ".join("fp32" if mode == "no" else mode for mode in words.split(", then "))


def _named(name: str, which: str) -> str:
    words = {"val_loss": "validation loss", "bits_per_byte": "bits per byte"}
    return f"{words.get(name, name)}, {which}"


def _loss_at_the_end(run: Run) -> float | None:
    """Mean over the last twentieth of its own tokens; None when no loss is finite."""
    curve = run.curve
    if not curve.counts.any():
        return None
    late = curve.tokens > min((1 - _SHARE_AT_THE_END) * curve.last_tokens, float(np.nanmax(curve.tokens)) - 1)
    return float(curve.sums["loss"][late].sum() / curve.counts[late].sum())


def _seconds_to(run: Run, loss: float) -> float | None:
    hours = hours_to_reach(run.curve, loss)
    return None if hours is None else hours * 3600


def _last(run: Run, name: str) -> float | None:
    values = series(run, name)[1]
    return float(values[-1]) if len(values) else None


def _best(run: Run) -> float | None:
    values = series(run, "val_loss")[1]
    return float(values.min()) if len(values) else None


def _number(value: float | None, words: Any) -> str:
    return _UNKNOWN if value is None else words(value)


def _duration(seconds: float | None) -> str:
    return _number(seconds, duration)


def _percent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %")


def differences(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """Settings, and versions of packages, that are not the same in all runs."""
    rows = [(key, *map(short, values)) for key, values in setting_differences(runs).items()]
    return rows + [(f"version of {key}", *map(short, values)) for key, values in version_differences(runs).items()]


def _by_tokens(pairs: Sequence[Pair]) -> list[tuple[str, ...]]:
    """Losses and gaps in equal parts of the tokens that all runs have whose training loss compares with the first's."""
    judged_pairs = [pair for pair in pairs if "loss" in pair.judged]
    if not judged_pairs:
        return []
    curves = [judged_pairs[0].a.curve, *(pair.b.curve for pair in judged_pairs)]
    span = common_span(*curves)
    number = num_segments(curves, span, NUM_ROWS)
    columns = []
    for pair in judged_pairs:
        parts = segments(pair.a.curve, pair.b.curve, span, pair.judged["loss"].spread, number)
        columns.append({part.to_tokens: part for part in parts})
    rows = [("tokens", judged_pairs[0].a.name, *(name for pair in judged_pairs for name in (pair.b.name, "gap")))]
    for tokens in (tokens for tokens in columns[0] if all(tokens in column for column in columns)):
        parts = [column[tokens] for column in columns]
        cells = [count(tokens), f"{parts[0].loss_a:.4f}"]
        for part in parts:
            mark = " *" if part.gap.is_beyond_noise else ""
            cells += [f"{part.loss_b:.4f}", _gap(part.gap.value, part.gap.band) + mark]
        rows.append(tuple(cells))
    return rows


def _gap(value: float, band: float) -> str:
    return f"{value:+.4f} +- {band:.4f}"


def _by_hours(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    rows = [("time", *(run.name for run in runs))]
    for hours, losses in losses_by_hours([run.curve for run in runs], NUM_ROWS):
        rows.append((duration(3600 * hours), *(_number(loss, "{:.4f}".format) for loss in losses)))
    return rows if len(rows) > 1 else []


def sentences(pair: Pair) -> list[str]:
    """The verdict on one run, what its noise is made of, and what one has to know to read it."""
    a, b = pair.a.name, pair.b.name
    if pair.is_equal:
        lines = [f"{b} is {a} to the last bit: every training loss of the {count(pair.tokens)} tokens is equal"]
    elif pair.a.has_diverged != pair.b.has_diverged:
        diverged, held = (pair.b, a) if pair.b.has_diverged else (pair.a, b)
        after = f"{diverged.name} diverged after {count(diverged.curve.last_finite_tokens)} tokens, and {held} did not"
        lines = [f"{after}: {b} is {pair.verdict}, whatever the losses were before"]
        lines += [f"  {_beside(pair, judged)}" for judged in pair.judged.values()]
    elif pair.deciding is None:
        lines = [f"{b} and {a} cannot be judged: {_why_not(pair)}"]
    else:
        lines = [_verdict(pair, pair.deciding) + _contradiction(pair)]
        lines += [f"  {_beside(pair, judged)}" for judged in pair.judged.values() if judged is not pair.deciding]
        lines.append(f"  noise: {_noise(pair, pair.deciding)}")
    return lines + _speed(pair) + [f"  note: {note}" for note in pair.notes]


def _why_not(pair: Pair) -> str:
    if same_vocabulary(pair.a, pair.b) and same_training_data(pair.a, pair.b):
        return "they have too few steps with a finite loss in common"
    return "nothing that was measured of both compares"


def _verdict(pair: Pair, judged: Judged) -> str:
    a, b, gap = pair.a.name, pair.b.name, judged.gap
    what = {"val_loss": " in validation loss", "bits_per_byte": " in bits per byte"}.get(judged.what, "")
    if judged.verdict == "no difference":
        return f"{b} and {a}: no difference beyond noise{what} (gap {_gap(gap.value, gap.band)} {judged.unit} over {judged.over})"
    since = ""
    if judged.what == "loss" and pair.since_tokens is not None:
        since = ", from the start" if pair.since_tokens == 0 else f", from {count(pair.since_tokens)} tokens on"
    share = f"{abs(gap.value) / abs(judged.a):.2%}".replace("%", " %")
    by = f"{abs(gap.value):.4f} +- {gap.band:.4f} {judged.unit} ({share})"
    return f"{b} is {judged.verdict} than {a}{what} by {by}, beyond noise, over {judged.over}{since}"


def _contradiction(pair: Pair) -> str:
    """What the validation loss says, where it is not what the headline does."""
    judged = pair.contradicting
    if judged is None:
        return ""
    found = f"is {judged.verdict}, beyond noise"
    if judged.verdict == "no difference":
        found = "shows no difference beyond noise"
    what = "the validation loss in bits per byte" if judged.what == "bits_per_byte" else "the validation loss"
    return f"; but that is the training loss: {what} {found} (gap {_gap(judged.gap.value, judged.gap.band)})"


def _beside(pair: Pair, judged: Judged) -> str:
    name = {"val_loss": "validation loss", "bits_per_byte": "bits per byte", "loss": "training loss"}[judged.what]
    is_apart = judged.verdict != "no difference"
    found = f"{pair.b.name} is {judged.verdict}" if is_apart else "no difference beyond noise"
    return f"{name}: {found} (gap {_gap(judged.gap.value, judged.gap.band)}, {judged.over})"


def _speed(pair: Pair) -> list[str]:
    ours, theirs = (run.curve.medians["tokens_per_second"] for run in (pair.a, pair.b))
    if not ours or not theirs:
        return []
    speeds = f"{count(theirs)} and {count(ours)} tokens/s"
    return [f"  speed: {pair.b.name} is {theirs / ours:.2f} times as fast as {pair.a.name} ({speeds})"]


def _noise(pair: Pair, judged: Judged) -> str:
    batches = "the same batches, whose ups and downs cancel" if pair.has_same_batches else "other batches"
    spread = judged.spread
    if spread.measured_on:
        source = f"measured on {', '.join(spread.measured_on)}, with the default"
    elif pair.has_same_batches:
        source = "the default for runs of one seed on the same batches"
    else:
        source = "the default; more seeds of one recipe among the runs would measure it"
    error = (
        f"standard error {judged.gap.window_error:.4f} from {batches}, and {judged.gap.run_error:.4f} from run to run"
    )
    return f"{error} ({100 * spread.fraction:.2g} % of the loss a run: {source})"


def to_json(comparison: Comparison) -> str:
    """The comparison for a program."""
    content = {
        "runs": [_run_facts(run) for run in comparison.runs],
        "settings": setting_differences(comparison.runs),
        "versions": version_differences(comparison.runs),
        "pairs": [_pair_facts(pair) for pair in comparison.pairs],
    }
    return json.dumps(content, indent=1)


def _run_facts(run: Run) -> dict[str, Any]:
    curve = run.curve
    evaluated = dict.fromkeys(key for each in curve.evaluations for key in each.facts)
    return {
        "name": run.name,
        "folder": str(run.folder),
        "outcome": run.outcome,
        "has_diverged": run.has_diverged,
        "precision": run.precision,
        "processes": run.processes,
        "machine": run.machine,
        "steps": curve.num_steps,
        "tokens": curve.last_tokens,
        "seconds": curve.seconds,
        "loss": _loss_at_the_end(run),
        "best_val_loss": _best(run),
        "evaluation": {name: _last(run, name) for name in evaluated},
        "tokens_per_second": curve.medians["tokens_per_second"],
        "mfu": curve.medians["mfu"],
    }


def _pair_facts(pair: Pair) -> dict[str, Any]:
    return {
        "a": pair.a.name,
        "b": pair.b.name,
        "verdict": "equal" if pair.is_equal else pair.verdict,
        "tokens": pair.tokens,
        "since_tokens": pair.since_tokens,
        "same_batches": pair.has_same_batches,
        "judged": {what: _judged_facts(judged) for what, judged in pair.judged.items()},
        "curve": [
            {"tokens": part.to_tokens, "a": part.loss_a, "b": part.loss_b, "gap": part.gap.value, "band": part.gap.band}
            for part in pair.segments
        ],
        "notes": pair.notes,
        "sentences": sentences(pair),
    }


def _judged_facts(judged: Judged) -> dict[str, Any]:
    return {
        "a": judged.a,
        "b": judged.b,
        "gap": judged.gap.value,
        "band": judged.gap.band,
        "verdict": judged.verdict,
        "over": judged.over,
        "window_error": judged.gap.window_error,
        "run_error": judged.gap.run_error,
        "run_fraction": judged.spread.fraction,
        "measured_on": list(judged.spread.measured_on),
    }
