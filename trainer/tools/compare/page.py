"""A comparison as one HTML page: verdicts, plots, tables. Everything is in the file, so it opens without a network."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer import files
from trainer.errors import TrainerError
from trainer.tools.compare.judge import Comparison, Pair, series
from trainer.tools.compare.runs import Run
from trainer.tools.compare.show import differences, facts, sentences

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, which colour-blind people can tell apart; one a run, the same in every plot."""
MAX_POINTS = 1500
"""Points of a line."""
NUM_SMOOTH = 60
"""A smoothed loss is the mean over a sixtieth of the run."""

_STYLE = """
:root { color: #1b1f24; background: #fff; font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", "DejaVu Sans", sans-serif; }
body { max-width: 1180px; margin: 2rem auto 4rem; padding: 0 1.5rem; }
h1 { font-size: 1.7rem; font-weight: 650; margin: 0 0 1rem; }
h2 { font-size: 1.1rem; font-weight: 650; margin: 2.5rem 0 .7rem; }
.verdict { border-left: 5px solid; padding: .6rem 1rem; margin: .7rem 0; background: #f6f8fa; border-radius: 0 6px 6px 0; }
.verdict p { margin: .15rem 0; color: #57606a; font-size: .88rem; } .verdict p:first-child { color: #1b1f24; font-size: 1.02rem; font-weight: 600; }
.plots { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1.2rem 1.6rem; } .wide { grid-column: 1 / -1; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { text-align: left; padding: .28rem 1.4rem .28rem 0; border-bottom: 1px solid #e4e8ec; overflow-wrap: anywhere; vertical-align: top; }
thead th { border-bottom: 2px solid #1b1f24; white-space: nowrap; } td:first-child { color: #57606a; }
.dot { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .45em; }
footer { color: #57606a; font-size: .85rem; margin-top: 2.5rem; max-width: 60rem; }
@media (max-width: 800px) { .plots { grid-template-columns: 1fr; } }
"""

_METHOD = """A gap is the run's loss minus the first run's: above zero, the run is worse. The band around it holds 95 of 100 gaps between runs of one
recipe. It is made of what the batches of the compared part do (from blocks of equal tokens, and how much a block takes after the one before it) and of how far apart runs of one
recipe end (measured where several seeds are among the runs, a default otherwise). Faint lines are every step, or the least and the
greatest of neighbouring steps where there are too many to draw; strong lines are their mean. Hours are hours of training, without
evaluations and saves."""


def write_page(comparison: Comparison, path: Path) -> Path:
    """Writes the page to a file, or under a name of its own into a folder; returns where it lies.

    raises  TrainerError when it cannot be written there
    """
    runs = comparison.runs
    if path.is_dir():
        path = path / f"compare-{'-'.join(run.folder.name for run in runs[:4])}.html"
    try:
        files.write_atomic(path, _page(comparison))
    except OSError as error:
        raise TrainerError(
            f"{path} cannot be written ({error.strerror}); give --html a file in a folder that exists and may be written"
        ) from None
    return path


def _page(comparison: Comparison) -> str:
    from plotly.offline import get_plotlyjs

    runs, pairs = comparison.runs, comparison.pairs
    title = f"{runs[0].name} against {', '.join(run.name for run in runs[1:])}"
    verdicts = "".join(_verdict(pair, colour) for pair, colour in zip(pairs, _colours(runs)[1:], strict=True))
    plots = "".join(_figure(plot) for plot in _plots(runs, pairs))
    differing = differences(runs)
    settings = f"<h2>What differs in settings and versions</h2>{_table(runs, differing)}" if differing else ""
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style><script>{get_plotlyjs()}</script></head><body>"
        f'<h1>{html.escape(title)}</h1>{verdicts}<h2>Curves</h2><div class="plots">{plots}</div>'
        f"<h2>The runs</h2>{_table(runs, facts(runs))}{settings}<footer>{_METHOD}</footer></body></html>\n"
    )


def _colours(runs: Sequence[Run]) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(len(runs))]


def _verdict(pair: Pair, colour: str) -> str:
    lines = "".join(f"<p>{html.escape(line.strip())}</p>" for line in sentences(pair))
    return f'<div class="verdict" style="border-color: {colour}">{lines}</div>'


def _table(runs: Sequence[Run], rows: Sequence[Sequence[str]]) -> str:
    names = "".join(
        f'<th><span class="dot" style="background: {colour}"></span>{html.escape(run.name)}</th>'
        for run, colour in zip(runs, _colours(runs), strict=True)
    )
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr><th></th>{names}</tr></thead><tbody>{body}</tbody></table>"


@dataclass(frozen=True)
class _Plot:
    """A title, the words on the axes, and plotly's traces."""

    title: str
    x: str
    y: str
    lines: list[dict[str, Any]]
    is_wide: bool = False
    """As wide as the page."""
    is_late: bool = False
    is_log: bool = False
    from_zero: bool = False


def _plots(runs: Sequence[Run], pairs: Sequence[Pair]) -> list[_Plot]:
    """Every plot that something is known for."""
    tokens, loss, gaps = "tokens", "nats per token", f"Gap to {runs[0].name}, with its 95 % band"
    plots = [
        _Plot("Training loss by tokens", tokens, loss, _loss_lines(runs, "tokens"), is_wide=True, is_late=True),
        _Plot(gaps, tokens, f"{loss}; above 0 is worse", _gap_lines(runs, pairs), is_wide=True, is_late=True),
        _Plot("Training loss by time", "hours of training", loss, _loss_lines(runs, "hours"), is_late=True),
        _Plot("Validation loss", tokens, loss, _evaluation_lines(runs, "val_loss"), is_late=True),
        _Plot("Throughput", tokens, "tokens per second", _metric_lines(runs, "tokens_per_second"), from_zero=True),
        _Plot("Gradient norm before clipping", tokens, "total norm", _metric_lines(runs, "grad_norm"), is_log=True),
        _Plot("Learning rate", tokens, "learning rate", _metric_lines(runs, "lr"), from_zero=True),
    ]
    facts_ = dict.fromkeys(name for run in runs for each in run.curve.evaluations for name in each.facts)
    for name in (name for name in facts_ if name != "val_loss"):
        plots.append(_Plot(name.replace("_", " "), tokens, _unit(name), _evaluation_lines(runs, name)))
    return [plot for plot in plots if plot.lines]


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


def _line(
    run: Run, colour: str, x: Any, y: Any, *, width: float, opacity: float = 1.0, is_faint: bool = False
) -> dict[str, Any]:
    look = {"line": {"color": colour, "width": width}, "opacity": opacity, "legendgroup": run.name}
    quiet = {"hoverinfo": "skip", "showlegend": False} if is_faint else {}
    points = {"x": np.asarray(x).tolist(), "y": np.asarray(y).tolist()}
    return {"type": "scatter", "mode": "lines", "name": html.escape(run.name), **points, **look, **quiet}


def means(places: np.ndarray, sums: np.ndarray, counts: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) of a line through at most `number` means over neighbouring bins, each over as many filled bins."""
    filled = np.isfinite(places) & np.isfinite(sums) & (counts > 0)
    if not filled.any():
        return np.zeros(0), np.zeros(0)
    places, sums, counts = places[filled], sums[filled], counts[filled]
    edges = np.unique(np.linspace(0, len(places), min(number, len(places)) + 1).astype(int)[:-1])
    steps = np.add.reduceat(counts, edges)
    return np.add.reduceat(places * counts, edges) / steps, np.add.reduceat(sums, edges) / steps


def extremes(places: np.ndarray, lowest: np.ndarray, highest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) of a line of at most MAX_POINTS points that touches every least and every greatest value: no spike is lost."""
    filled = np.isfinite(places) & np.isfinite(lowest)
    places, lowest, highest = places[filled], lowest[filled], highest[filled]
    if len(places) <= MAX_POINTS and (lowest == highest).all():
        return places, lowest
    edges = np.unique(np.linspace(0, len(places), min(MAX_POINTS // 2, len(places)) + 1).astype(int)[:-1])
    y = np.stack([np.minimum.reduceat(lowest, edges), np.maximum.reduceat(highest, edges)], axis=1)
    return np.repeat(places[edges], 2), y.ravel()


_FONT = {"size": 12.5, "color": "#1b1f24"}
_FONT |= {"family": "system-ui, Segoe UI, Roboto, Liberation Sans, DejaVu Sans, sans-serif"}
_LEGEND = {"orientation": "h", "x": 1, "xanchor": "right", "y": 1.0, "yanchor": "bottom"}
_AXIS = {"gridcolor": "#e9edf1", "ticks": "outside", "exponentformat": "SI"}
_AXIS |= dict.fromkeys(("zerolinecolor", "linecolor", "tickcolor"), "#8c959f")
_BAR = {"displayModeBar": False, "responsive": True}


def _figure(plot: _Plot) -> str:
    """One plot as a piece of HTML."""
    from plotly.graph_objects import Figure

    title = {"text": f"<b>{html.escape(plot.title)}</b>", "x": 0, "xref": "paper", "font": {"size": 15}}
    figure = Figure(plot.lines)
    figure.update_layout(title=title, font=_FONT, legend=_LEGEND, paper_bgcolor="#fff", plot_bgcolor="#fff")
    figure.update_layout(height=380, margin={"l": 64, "r": 12, "t": 62, "b": 48}, hovermode="x unified")
    figure.update_xaxes(_AXIS, title_text=plot.x, rangemode="tozero")
    figure.update_yaxes(_AXIS, title_text=html.escape(plot.y), type="log" if plot.is_log else "linear")
    if plot.from_zero:
        figure.update_yaxes(rangemode="tozero")
    if plot.is_late:
        figure.update_yaxes(range=_late_range(plot.lines))
    drawn = figure.to_html(full_html=False, include_plotlyjs=False, config=_BAR)
    return f'<div class="{"wide" if plot.is_wide else ""}">{drawn}</div>'


def _late_range(lines: Sequence[dict[str, Any]]) -> list[float]:
    """The range of y without the first sixth of what is drawn, so that differences at the end can be seen; dragging shows the rest."""
    end = max(max(line["x"]) for line in lines)
    points = [point for line in lines for point in zip(line["x"], line["y"], strict=True)]
    late = [y for x, y in points if x >= end / 6] or [y for _, y in points]
    low, high = min(late), max(late)
    margin = 0.05 * (high - low) or 0.01
    return [low - margin, high + margin]
