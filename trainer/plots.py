"""Pages with plots, each one file that opens without a network: how they look, how lines are thinned, and what plotly draws of them."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer import files
from trainer.errors import TrainerError

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, which colour-blind people can tell apart."""
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
.list td:not(:last-child) { white-space: nowrap; }
.dot { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .45em; }
footer { color: #57606a; font-size: .85rem; margin-top: 2.5rem; max-width: 60rem; }
@media (max-width: 800px) { .plots { grid-template-columns: 1fr; } }
"""


def write_page(page: str, path: Path, name: str) -> Path:
    """Writes a page to a file, or under this name into a folder; returns where it lies.

    raises  TrainerError when it cannot be written there
    """
    path = path / name if path.is_dir() else path
    try:
        files.write_atomic(path, page)
    except OSError as error:
        raise TrainerError(
            f"{path} cannot be written ({error.strerror}); give --html a file in a folder that exists and may be written"
        ) from None
    return path


def whole_page(title: str, body: str) -> str:
    """A page of a title (text) and a body (HTML), with all that its plots need."""
    from plotly.offline import get_plotlyjs

    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style><script>{get_plotlyjs()}</script></head><body>"
        f"<h1>{html.escape(title)}</h1>{body}</body></html>\n"
    )


def table_html(head: Sequence[str], rows: Sequence[Sequence[str]], dots: Sequence[str] = (), look: str = "") -> str:
    """A table of texts; `dots`: the colours of a dot before each word of the head but the first. In a `list` only the last column is wrapped."""
    marks = ["", *(f'<span class="dot" style="background: {colour}"></span>' for colour in dots)]
    marks += [""] * (len(head) - len(marks))
    names = "".join(f"<th>{mark}{html.escape(word)}</th>" for mark, word in zip(marks, head))
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<table class="{look}"><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>'


@dataclass(frozen=True)
class Mark:
    """An event at a place of the x axis, drawn from the bottom to the top."""

    x: float
    kind: str
    """In the legend, which shows and hides all of a kind."""
    colour: str
    words: str


@dataclass(frozen=True)
class Plot:
    """A title, the words on the axes, and plotly's traces."""

    title: str
    x: str
    y: str
    lines: list[dict[str, Any]]
    is_wide: bool = False
    """As wide as the page."""
    is_late: bool = False
    """Whether the first sixth does not stretch the y axis."""
    is_log: bool = False
    from_zero: bool = False
    marks: Sequence[Mark] = ()
    """Drawn where `is_late`."""


def line(
    name: str, colour: str, x: Any, y: Any, *, width: float, opacity: float = 1.0, is_faint: bool = False
) -> dict[str, Any]:
    """A line through points; a faint one is neither in the legend nor under the pointer."""
    look = {"line": {"color": colour, "width": width}, "opacity": opacity, "legendgroup": name}
    quiet = {"hoverinfo": "skip", "showlegend": False} if is_faint else {}
    points = {"x": np.asarray(x).tolist(), "y": np.asarray(y).tolist()}
    return {"type": "scatter", "mode": "lines", "name": html.escape(name), **points, **look, **quiet}


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


def figure(plot: Plot) -> str:
    """One plot as a piece of HTML."""
    from plotly.graph_objects import Figure

    title = {"text": f"<b>{html.escape(plot.title)}</b>", "x": 0, "xref": "paper", "font": {"size": 15}}
    drawn = Figure(plot.lines)
    drawn.update_layout(title=title, font=_FONT, legend=_LEGEND, paper_bgcolor="#fff", plot_bgcolor="#fff")
    drawn.update_layout(height=380, margin={"l": 64, "r": 12, "t": 62, "b": 48}, hovermode="x unified")
    drawn.update_xaxes(_AXIS, title_text=plot.x, rangemode="tozero")
    drawn.update_yaxes(_AXIS, title_text=html.escape(plot.y), type="log" if plot.is_log else None, automargin=True)
    if plot.from_zero:
        drawn.update_yaxes(rangemode="tozero")
    if plot.is_late:
        low, high = _late_range(plot.lines)
        drawn.update_yaxes(range=[low, high])
        for kind in dict.fromkeys(mark.kind for mark in plot.marks):
            drawn.add_trace(_marked([mark for mark in plot.marks if mark.kind == kind], low, high))
    text = drawn.to_html(full_html=False, include_plotlyjs=False, config=_BAR)
    return f'<div class="{"wide" if plot.is_wide else ""}">{text}</div>'


def _marked(marks: Sequence[Mark], low: float, high: float) -> dict[str, Any]:
    """Events of one kind, as upright lines between two values of y."""
    look = {"line": {"color": marks[0].colour, "width": 1.2, "dash": "dot"}, "opacity": 0.8, "hoverinfo": "text"}
    x = [place for mark in marks for place in (mark.x, mark.x, None)]
    words = [text for mark in marks for text in (html.escape(mark.words),) * 3]
    points = {"x": x, "y": [low, high, None] * len(marks), "text": words}
    return {"type": "scatter", "mode": "lines", "name": html.escape(marks[0].kind), **points, **look}


def _late_range(lines: Sequence[dict[str, Any]]) -> list[float]:
    """The range of y without the first sixth of what is drawn, so that differences at the end can be seen; dragging shows the rest."""
    end = max(max(line["x"]) for line in lines)
    points = [point for line in lines for point in zip(line["x"], line["y"], strict=True)]
    late = [y for x, y in points if x >= end / 6] or [y for _, y in points]
    low, high = min(late), max(late)
    margin = 0.05 * (high - low) or 0.01
    return [low - margin, high + margin]
