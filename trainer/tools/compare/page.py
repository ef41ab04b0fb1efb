"""A comparison as one HTML page: verdicts, plots, tables. Everything is in the file, so it opens without a network."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer import plots
from trainer.plots import COLOURS, MAX_POINTS, NUM_SMOOTH, Plot, extremes, means
from trainer.tools.compare.judge import Comparison, Pair, series
from trainer.tools.compare.runs import Run
from trainer.tools.compare.show import differences, facts, sentences

_METHOD = """A gap is the run's loss minus the first run's: above zero, the run is worse. The band around it holds 95 of 100 gaps between runs of one
recipe. It is made of what the batches of the compared part do (from blocks of equal tokens, and how much a block takes after the one before it) and of how far apart runs of one
recipe end (measured where several seeds are among the runs, a default otherwise). Faint lines are every step, or the least and the
greatest of neighbouring steps where there are too many to draw; strong lines are their mean. Hours are hours of training, without
evaluations and saves."""


def write_page(comparison: Comparison, path: Path) -> Path:
    """Writes the page to a file, or under a name of its own into a folder; returns where it lies.

    raises  TrainerError when it cannot be written there
    """
    name = f"compare-{'-'.join(run.folder.name for run in comparison.runs[:4])}.html"
    return plots.write_page(_page(comparison), path, name)


def _page(comparison: Comparison) -> str:
    runs, pairs = comparison.runs, comparison.pairs
    title = f"{runs[0].name} against {', '.join(run.name for run in runs[1:])}"
    verdicts = "".join(_verdict(pair, colour) for pair, colour in zip(pairs, _colours(runs)[1:], strict=True))
    figures = "".join(plots.figure(plot) for plot in _plots(runs, pairs))
    differing = differences(runs)
    settings = f"<h2>What differs in settings and versions</h2>{_table(runs, differing)}" if differing else ""
    curves = f'{verdicts}<h2>Curves</h2><div class="plots">{figures}</div>'
    body = f"{curves}<h2>The runs</h2>{_table(runs, facts(runs))}{settings}<footer>{_METHOD}</footer>"
    return plots.whole_page(title, body)


def _colours(runs: Sequence[Run]) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(len(runs))]


def _verdict(pair: Pair, colour: str) -> str:
    lines = "".join(f"<p>{html.escape(line.strip())}</p>" for line in sentences(pair))
    return f'<div class="verdict" style="border-color: {colour}">{lines}</div>'


def _table(runs: Sequence[Run], rows: Sequence[Sequence[str]]) -> str:
    return plots.table_html(["", *(run.name for run in runs)], rows, _colours(runs))


def _plots(runs: Sequence[Run], pairs: Sequence[Pair]) -> list[Plot]:
    """Every plot that something is known for."""
    tokens, loss, gaps = "tokens", "nats per token", f"Gap to {runs[0].name}, with its 95 % band"
    found = [
        Plot("Training loss by tokens", tokens, loss, _loss_lines(runs, "tokens"), is_wide=True, is_late=True),
        Plot(gaps, tokens, f"{loss}; above 0 is worse", _gap_lines(runs, pairs), is_wide=True, is_late=True),
        Plot("Training loss by time", "hours of training", loss, _loss_lines(runs, "hours"), is_late=True),
        Plot("Validation loss", tokens, loss, _evaluation_lines(runs, "val_loss"), is_late=True),
        Plot("Throughput", tokens, "tokens per second", _metric_lines(runs, "tokens_per_second"), from_zero=True),
        Plot("Gradient norm before clipping", tokens, "total norm", _metric_lines(runs, "grad_norm"), is_log=True),
        Plot("Learning rate", tokens, "learning rate", _metric_lines(runs, "lr"), from_zero=True),
    ]
    facts_ = dict.fromkeys(name for run in runs for each in run.curve.evaluations for name in each.facts)
    for name in (name for name in facts_ if name != "val_loss"):
        found.append(Plot(name.replace("_", " "), tokens, _unit(name), _evaluation_lines(runs, name)))
    return [plot for plot in found if plot.lines]


def _unit(name: str) -> str:
    if name == "bits_per_byte":
        return "bits per byte"
    return "share right (0..1)" if name.endswith(("/acc", "/acc_norm")) else name.rpartition("/")[2].replace("_", " ")


def _loss_lines(runs: Sequence[Run], by: str) -> list[dict[str, Any]]:
    lines = []
    for run, colour in zip(runs, _colours(runs), strict=True):
        places = getattr(run.curve, by)
        if not np.isfinite(places).any():
            continue
        raw = extremes(places, run.curve.lowest, run.curve.highest)
        smooth = means(places, run.curve.sums["loss"], run.curve.counts, NUM_SMOOTH)
        lines.append(_line(run, colour, *raw, width=0.8, opacity=0.28, is_faint=True))
        lines.append(_line(run, colour, *smooth, width=2.4))
    return lines


def _metric_lines(runs: Sequence[Run], metric: str) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    dashes = ("solid", "dash", "dot", "dashdot") if metric == "lr" else ("solid",)
    for run, colour in zip(runs, _colours(runs), strict=True):
        if np.isfinite(run.curve.mean(metric)).any():
            x, y = means(run.curve.tokens, run.curve.sums[metric], run.curve.counts, MAX_POINTS // 5)
            line = _line(run, colour, x, y, width=1.4)
            line["line"]["dash"] = dashes[len(lines) % len(dashes)]
            lines.append(line)
    return lines


def _evaluation_lines(runs: Sequence[Run], what: str) -> list[dict[str, Any]]:
    lines = []
    for run, colour in zip(runs, _colours(runs), strict=True):
        tokens, values = (each[-MAX_POINTS:] for each in series(run, what))
        if len(tokens):
            lines.append({**_line(run, colour, tokens, values, width=1.8), "mode": "lines+markers"})
    return lines


def _gap_lines(runs: Sequence[Run], pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    lines = []
    for pair, colour in zip(pairs, _colours(runs)[1:], strict=True):
        x = [(part.from_tokens + part.to_tokens) / 2 for part in pair.segments]
        gaps = np.array([part.gap.value for part in pair.segments])
        bands = np.array([part.gap.band for part in pair.segments])
        if len(x):
            edge = np.concatenate([gaps + bands, (gaps - bands)[::-1]])
            band = _line(pair.b, colour, x + x[::-1], edge, width=0, opacity=0.18, is_faint=True)
            lines.append({**band, "fill": "toself", "fillcolor": colour})
            lines.append({**_line(pair.b, colour, x, gaps, width=2.2), "mode": "lines+markers", "marker": {"size": 4}})
    return lines


def _line(run: Run, colour: str, x: Any, y: Any, **look: Any) -> dict[str, Any]:
    return plots.line(run.name, colour, x, y, **look)
