import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from trainer.metrics.histograms import NUM_BUCKETS, histogram_of


def test_a_histogram_counts_every_value_once():
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    found = histogram_of(values)
    assert (found.num, found.min, found.max) == (1000, values.min(), values.max())
    assert found.sum == pytest.approx(values.sum(), rel=1e-4)
    assert found.sum_squares == pytest.approx((values**2).sum(), rel=1e-4)
    assert found.bucket_counts.sum() == 1000
    assert len(found.bucket_counts) == len(found.bucket_limits) == NUM_BUCKETS
    assert found.bucket_limits[-1] == found.max
    assert np.all(np.diff(found.bucket_limits) > 0)
    before = -np.inf
    for limit, count in zip(found.bucket_limits, found.bucket_counts, strict=True):
        assert ((values > before) & (values <= limit)).sum() == count
        before = limit


def test_an_outlier_does_not_blur_the_rest():
    found = histogram_of(np.append(np.linspace(-1, 1, 640), 1e6))
    assert found.bucket_counts.max() <= 12
    assert found.max == 1e6


@pytest.mark.parametrize("values", [[0.5], [0.0] * 300, [1.0, 1.0, 2.0], list(range(65))])
def test_few_and_equal_values_have_a_histogram(values):
    found = histogram_of(np.array(values, np.float32))
    assert found.bucket_counts.sum() == len(values)
    assert found.bucket_counts.min() > 0
    assert (found.min, found.max) == (min(values), max(values))


def test_values_that_are_not_finite_are_left_out():
    found = histogram_of(np.array([1.0, np.nan, 2.0, np.inf, -np.inf], np.float32))
    assert (found.num, found.sum, found.max) == (2, 3.0, 2.0)


def test_where_nothing_is_finite_there_is_no_histogram():
    assert histogram_of(np.array([np.nan, np.inf])) is None
    assert histogram_of(np.array([], np.float32)) is None


def test_tensorboard_reads_back_what_was_written(tmp_path):
    values = np.linspace(-2, 2, 256)
    with SummaryWriter(tmp_path) as writer:
        writer.add_histogram_raw("weights/a", **vars(histogram_of(values)), global_step=3)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    ((step, read),) = [(event.step, event.histogram_value) for event in events.Histograms("weights/a")]
    assert (step, read.num, read.min, read.max) == (3, 256, -2, 2)
    assert read.bucket == [4.0] * NUM_BUCKETS
