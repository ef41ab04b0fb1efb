"""How much of a gap between two runs is noise. A gap is believed when it is wider than its band, which has two parts.

What the batches of the window make: the window is cut into blocks of equal tokens, and the mean of the blocks' gaps is uncertain by
their spread. Neighbouring blocks are not independent (both runs walk on from where they were), so the spread is corrected by
Newey and West (1987), and never taken for less than that of independent blocks. Where both runs saw the same batches, the
batches' own ups and downs cancel in the gap, and this part becomes small by itself.

What another run of the same recipe would make: another seed ends elsewhere, by more than the blocks of one window can tell. It is
measured where runs that differ only in their seed are among those given. The default below stands in for what was not measured and
weighs as much as DEFAULT_DOF measured runs, so that two lucky seeds do not make a band of nothing. For two runs of one seed on the
same batches the default is smaller: they begin as one, and drift apart by rounding only.

The band holds 95 of 100 gaps between runs of one recipe: t's quantile at the degrees of freedom of Welch and Satterthwaite.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NUM_BLOCKS = 20
MIN_BLOCKS = 4
"""Fewer have no spread to speak of."""

SEED_FRACTION = 0.003
"""Standard deviation of a run's loss at the end from seed to seed, as a share of the loss."""
ROUNDING_FRACTION = 0.001
"""The same between runs of one seed on the same batches that differ in rounding only."""
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
    window_error = standard_error(gaps) if len(gaps) >= MIN_BLOCKS else 0.0
    run_error = math.sqrt(2) * spread.fraction * abs(level)
    error = math.hypot(window_error, run_error)
    quantile = t_quantile(_joint_dof((window_error, max(1, len(gaps) - 1)), (run_error, spread.dof)))
    return Gap(float(gaps.mean()), quantile * error, window_error, run_error)


def standard_error(blocks: np.ndarray) -> float:
    """Standard error of the mean of successive blocks [K], their autocorrelation included."""
    number = len(blocks)
    deviations = blocks - blocks.mean()
    variance = float(deviations @ deviations) / (number - 1)
    lags = min(number - 1, math.floor(4 * (number / 100) ** (2 / 9)))
    covariances = [float(deviations[lag:] @ deviations[:-lag]) / number for lag in range(1, lags + 1)]
    correction = 2 * sum((1 - lag / (lags + 1)) * value for lag, value in enumerate(covariances, start=1))
    return math.sqrt((variance + max(0.0, correction)) / number)


def spread(groups: Sequence[dict[str, float]], default_fraction: float) -> Spread:
    """From the losses at the end of runs by name, grouped by recipe; a group of one says nothing. The default has its own weight."""
    told = [group for group in groups if len(group) > 1]
    squares, dof = DEFAULT_DOF * default_fraction**2, float(DEFAULT_DOF)
    for group in told:
        losses = np.array(list(group.values()))
        squares += float(((losses / losses.mean() - 1) ** 2).sum())
        dof += len(losses) - 1
    return Spread(math.sqrt(squares / dof), dof, tuple(name for group in told for name in group))


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
