"""How much of a gap between two runs is noise. A gap is believed when it is wider than its band, which has two parts.

What the batches of the window make: the window is cut into blocks of equal tokens, and the mean of the blocks' gaps is uncertain by
their spread. Where a block takes after the one before it, K blocks tell as much as fewer independent ones: K (1 - r) / (1 + r), with r
the correlation of neighbours, which a few blocks show too small by about (1 + 4 r) / K (Kendall, 1954); never more than K. Where both
runs saw the same batches, the batches' own ups and downs cancel in the gap, and this part becomes small by itself.

What another run of the same recipe would make: another seed ends elsewhere, by more than the blocks of one window can tell. It is
measured where runs that differ only in their seed are among those given. What was not measured is taken from `default_fraction`,
which weighs as much as DEFAULT_DOF measured runs, so that two lucky seeds do not make a band of nothing.

The band holds 95 of 100 gaps between runs of one recipe: t's quantile at the degrees of freedom of Welch and Satterthwaite.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NUM_BLOCKS = 40
MIN_BLOCKS = 4
"""Fewer have no spread to speak of."""
_MAX_CORRELATION = 0.95

_SEEDS = {"loss": (0.006, 0.3), "val_loss": (0.012, 1 / 3), "bits_per_byte": (0.012, 1 / 3)}
"""(share of the loss at 100k tokens, power of the tokens with which it falls), from two ends: the Shakespeare corpus at 150k tokens
(tests/benchmarks/compare_coverage.py), and GPT-2 124M at 1.7G tokens of FineWeb, whose validation losses of 3.28 have a standard deviation of 0.0009 over 20 seeds and
0.0013 over 10 (github.com/KellerJordan/modded-nanogpt, pull requests 321 and 323)."""
_ROUNDING = {"loss": 0.001, "val_loss": 0.003, "bits_per_byte": 0.003}
"""The share for two runs of one seed on the same batches, which drift apart by rounding only: measured on the Shakespeare recipe with other
micro-batches. After long they may be as far apart as seeds are (Summers and Dinneen, 2021), so the lesser of the two holds."""
DEFAULT_DOF = 4
"""How many measured deviations the default counts for."""


@dataclass(frozen=True)
class Spread:
    """How far apart runs of one recipe end: the standard deviation of one run, as a share of the loss."""

    fraction: float
    dof: float
    measured_on: tuple[str, ...] = ()
    """The runs it was measured on; none: it is the default."""


@dataclass(frozen=True)
class Gap:
    """B minus A of one quantity over some tokens: above zero, B's is higher."""

    value: float
    band: float
    """Half the width of the 95 % band around `value`."""
    window_error: float
    """Standard error from the batches of the window."""
    run_error: float
    """Standard error from run to run."""

    @property
    def is_beyond_noise(self) -> bool:
        return abs(self.value) > self.band


def gap(gaps: Sequence[float] | np.ndarray, level: float, spread: Spread) -> Gap:
    """The gap of two runs from their blocks' gaps [K], each B minus A; `level` is the loss that the spread is a share of.

    Fewer than MIN_BLOCKS blocks give a mean without an error of its own.
    """
    gaps = np.asarray(gaps, dtype=float)
    if not gaps.any():  # the same numbers, so the same run
        return Gap(0.0, 0.0, 0.0, 0.0)
    window_error, window_dof = standard_error(gaps) if len(gaps) >= MIN_BLOCKS else (0.0, 1.0)
    run_error = math.sqrt(2) * spread.fraction * abs(level)
    error = math.hypot(window_error, run_error)
    quantile = t_quantile(_joint_dof((window_error, window_dof), (run_error, spread.dof)))
    return Gap(float(gaps.mean()), quantile * error, window_error, run_error)


def standard_error(blocks: np.ndarray) -> tuple[float, float]:
    """(standard error of the mean of successive blocks [K], its degrees of freedom), their correlation included."""
    number = len(blocks)
    deviations = blocks - blocks.mean()
    squares = float(deviations @ deviations)
    if squares == 0.0:
        return 0.0, number - 1.0
    seen = float(deviations[1:] @ deviations[:-1]) / squares
    correlation = min(_MAX_CORRELATION, max(0.0, seen + (1 + 4 * seen) / number))
    independent = max(2.0, number * (1 - correlation) / (1 + correlation))
    return math.sqrt(squares / (number - 1) / independent), independent - 1


def spread(groups: Sequence[dict[str, float]], default: float) -> Spread:
    """From the losses at the end of runs by name, grouped by recipe; a group of one says nothing. The default has its own weight."""
    repeated = [group for group in groups if len(group) > 1]
    squares, dof = DEFAULT_DOF * default**2, float(DEFAULT_DOF)
    for group in repeated:
        losses = np.array(list(group.values()))
        squares += float(((losses / losses.mean() - 1) ** 2).sum())
        dof += len(losses) - 1
    return Spread(math.sqrt(squares / dof), dof, tuple(name for group in repeated for name in group))


def default_fraction(what: str, tokens: float, *, same_batches: bool) -> float:
    """How far runs of one recipe end apart when nobody measured it: the standard deviation of one run, as a share of the loss."""
    share, power = _SEEDS[what]
    seeds = share * (1e5 / max(tokens, 1e5)) ** power
    return min(seeds, _ROUNDING[what]) if same_batches else seeds


def t_quantile(dof: float) -> float:
    """The 97.5 % quantile of Student's t, by the expansion of Cornish and Fisher; within 0.5 % from 3 degrees of freedom on."""
    z = 1.959964
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    fourth = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
    return z + first / dof + second / dof**2 + third / dof**3 + fourth / dof**4


def _joint_dof(*parts: tuple[float, float]) -> float:
    """Degrees of freedom of a sum of variances, from (standard error, degrees of freedom) of each."""
    total = sum(error**2 for error, _ in parts)
    below = sum(error**4 / dof for error, dof in parts)
    return max(3.0, total**2 / below) if below else math.inf
