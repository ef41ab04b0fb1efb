"""How the values of a tensor are spread, as TensorBoard's histograms want it."""

from dataclasses import dataclass

import numpy as np

NUM_BUCKETS = 64


@dataclass(frozen=True)
class Histogram:
    """Counts of finite values in buckets: the arguments of `SummaryWriter.add_histogram_raw`, by their names."""

    min: float
    max: float
    num: int
    sum: float
    sum_squares: float
    bucket_limits: np.ndarray
    """The largest value of each bucket, float64; the first begins at `min`, each other after the one before it."""
    bucket_counts: np.ndarray


def histogram_of(values: np.ndarray) -> Histogram | None:
    """The histogram of the finite values of an array; None where it has none.

    Its buckets hold about equally many values each, so they are fine where the values are, however far the outliers.
    """
    finite = np.sort(values[np.isfinite(values)]).astype(np.float64)
    num = len(finite)
    if num == 0:
        return None
    last_of_bucket = -(-np.arange(1, NUM_BUCKETS + 1) * num // NUM_BUCKETS) - 1
    limits = np.unique(finite[last_of_bucket.clip(0)])
    counts = np.diff(np.searchsorted(finite, limits, side="right"), prepend=0)
    return Histogram(
        min=float(finite[0]),
        max=float(finite[-1]),
        num=num,
        sum=float(finite.sum()),
        sum_squares=float(finite @ finite),
        bucket_limits=limits,
        bucket_counts=counts,
    )
