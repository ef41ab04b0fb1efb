"""Curves side by side, by tokens and by hours: the window at their common end, segments along the way, the same hour. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer.metrics.binned import Curve
from trainer.tools.compare.noise import NUM_BLOCKS, Gap, Spread, gap

WINDOW_FRACTION = 0.2
"""The share of the common tokens, at their end, that a verdict is about."""
MIN_STEPS = 8
"""Least number of steps of each run in a window or a segment."""


@dataclass(frozen=True)
class Span:
    """Some tokens of training: the bins from `start` up to `stop`."""

    start: int
    stop: int


@dataclass(frozen=True)
class Segment:
    """Two losses and their gap over one part of the common tokens."""

    from_tokens: float
    to_tokens: float
    loss_a: float
    loss_b: float
    gap: Gap


def common_tokens(*curves: Curve) -> int:
    """The tokens that every run was trained on, with a loss that is a finite number at their end."""
    return min(curve.last_finite_tokens for curve in curves)


def common_span(*curves: Curve) -> Span:
    """The bins of those tokens."""
    return Span(0, math.ceil(common_tokens(*curves) / curves[0].bin_tokens - 1e-9))


def end_span(*curves: Curve) -> Span | None:
    """The last fifth of the common tokens, or more where that has too few steps; None where all of them have."""
    whole = common_span(*curves)
    start = math.ceil((1 - WINDOW_FRACTION) * whole.stop)
    for curve in curves:
        steps_to_the_end = np.cumsum(curve.counts[: whole.stop][::-1])
        if not len(steps_to_the_end) or steps_to_the_end[-1] < MIN_STEPS:
            return None
        start = min(start, whole.stop - 1 - int(np.argmax(steps_to_the_end >= MIN_STEPS)))
    return Span(start, whole.stop)


def mean_loss(curve: Curve, span: Span) -> float:
    """Mean training loss over the steps of some bins, nats per token."""
    part = slice(span.start, span.stop)
    return float(curve.sums["loss"][part].sum() / curve.counts[part].sum())


def block_gaps(a: Curve, b: Curve, span: Span) -> np.ndarray:
    """Mean loss of B minus that of A in blocks of equal tokens, [K]; blocks without a step of both are left out."""
    part = slice(span.start, span.stop)
    number = int(min(NUM_BLOCKS, a.counts[part].sum(), b.counts[part].sum()))
    edges = np.linspace(0, span.stop - span.start, number + 1)[:-1].round().astype(int)
    with np.errstate(invalid="ignore", divide="ignore"):
        ours, theirs = (
            np.add.reduceat(curve.sums["loss"][part], edges) / np.add.reduceat(curve.counts[part], edges)
            for curve in (a, b)
        )
    gaps = theirs - ours
    return gaps[np.isfinite(gaps)]


def segments(a: Curve, b: Curve, span: Span, spread: Spread, number: int) -> list[Segment]:
    """The gap over `number` parts of equal tokens; those without a step of both are left out."""
    edges = np.linspace(span.start, span.stop, number + 1).round().astype(int).tolist()
    found = []
    for part in map(Span, edges[:-1], edges[1:]):
        gaps = block_gaps(a, b, part)
        if len(gaps):
            loss_a, loss_b = mean_loss(a, part), mean_loss(b, part)
            tokens = part.start * a.bin_tokens, part.stop * a.bin_tokens
            found.append(Segment(*tokens, loss_a, loss_b, gap(gaps, loss_a, spread)))
    return found


def num_segments(curves: Sequence[Curve], span: Span, most: int) -> int:
    """How many parts of equal tokens have enough steps of every run for a band each, and not more than `most`."""
    steps = min(curve.counts[span.start : span.stop].sum() for curve in curves)
    return max(1, min(most, int(steps) // MIN_STEPS))


def apart_since(parts: Sequence[Segment]) -> float | None:
    """The tokens from which the gap has been beyond noise in one direction until the end; None when it is not at the end."""
    since = None
    for part in reversed(parts):
        if not part.gap.is_beyond_noise or part.gap.value * parts[-1].gap.value < 0:
            break
        since = part.from_tokens
    return since


def losses_by_hours(curves: Sequence[Curve], number: int) -> list[tuple[float, list[float | None]]]:
    """(hours, each run's mean loss since the row before) in equal parts of the shortest time that have a step; none where a time is unknown."""
    seconds = [curve.seconds for curve in curves if curve.seconds is not None]
    if len(seconds) < len(curves):
        return []
    edges = np.linspace(0, min(seconds) / 3600, number + 1)
    rows = []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        losses: list[float | None] = []
        for curve in curves:
            inside = (curve.hours > low) & (curve.hours <= high * (1 + 1e-9))
            steps = curve.counts[inside].sum()
            losses.append(float(curve.sums["loss"][inside].sum() / steps) if steps else None)
        if any(loss is not None for loss in losses):
            rows.append((float(high), losses))
    return rows


def hours_to_reach(curve: Curve, loss: float) -> float | None:
    """The time of training after which the mean loss of MIN_STEPS steps or of a fiftieth of the run first came to `loss`; None: never."""
    filled = curve.counts > 0
    if curve.seconds is None or not filled.any():
        return None
    counts, sums, hours = curve.counts[filled], curve.sums["loss"][filled], curve.hours[filled]
    width = min(len(counts), max(MIN_STEPS, len(counts) // 50))
    total, steps = (np.convolve(values, np.ones(width), "valid") for values in (sums, counts))
    reached = total / steps <= loss
    return float(hours[int(np.argmax(reached)) + width - 1]) if reached.any() else None
