"""A month of steps as trackers draw it."""

import math

import pytest

from trainer.metrics import thinning
from trainer.metrics.thinning import Thinning, width


@pytest.fixture
def sparse(monkeypatch):
    """As if ten steps were ten thousand."""
    monkeypatch.setattr(thinning, "DENSE_STEPS", 10)


def points_of(records):
    thin = Thinning()
    return [point for record in records for point in thin.add(record)] + thin.flush()


def record(step, loss=1.0, **more):
    return {"step": step, "loss": loss, "grad_norm": 1.0, "tokens": 4 * step, **more}


def test_a_month_of_short_steps_has_at_most_some_hundred_thousand_points():
    """34 days of 0.2 s; the sum over the widths of the points that are as wide."""
    steps, step, number = 14_700_000, 1, 0
    while step <= steps:
        step += width(step)
        number += 1
    assert 80_000 < number < 100_000
    assert all(width(step) == 1 for step in range(1, 20_000))
    assert width(14_700_000) == 1470


def test_a_young_run_is_drawn_step_by_step(sparse):
    assert points_of(record(step, 1 / step) for step in range(1, 20))[6] == (
        7,
        {"Loss/train": 1 / 7, "optim/grad_norm": 1.0, "data/tokens": 28.0},
    )


def test_many_steps_are_their_mean_their_extremes_and_the_last_of_what_counts_up(sparse):
    found = points_of(record(step, float(step % 3)) for step in range(30, 36))
    assert [step for step, _ in found] == [32, 35]
    values = found[0][1]
    assert values["Loss/train"] == 1.0
    assert (values["Loss/train_min"], values["Loss/train_max"]) == (0.0, 2.0)
    assert values["data/tokens"] == 4.0 * 32


def test_what_few_steps_have_keeps_its_step_and_its_value(sparse):
    records = [
        record(30),
        record(31, **{"checkpoint/bytes": 7}),
        {"step": 31, "tokens": 1, "val_loss": 2.5},
        record(32),
        record(33),
    ]
    found = dict(points_of(records))
    assert found[31] == {"checkpoint/bytes": 7.0, "Loss/validation": 2.5}
    assert found[32]["Loss/train"] == 1.0


def test_a_step_that_was_not_finite_or_proved_a_resume_stands_alone_and_no_mean_has_it(sparse):
    records = [
        record(100),
        record(101, None),
        record(102),
        record(103, 5.0, **{"resume/exact": 1.0}),
        *map(record, range(104, 111)),
    ]
    found = dict(points_of(records))
    assert math.isnan(found[101]["Loss/train"])
    assert found[100]["Loss/train"] == 1.0
    assert found[110]["Loss/train"] == pytest.approx(13 / 9)
    records = [*map(record, range(100, 103)), record(103, 5.0, **{"resume/exact": 1.0}), *map(record, range(104, 111))]
    assert dict(points_of(records))[103]["Loss/train"] == 5.0


def test_what_happens_all_the_time_has_no_more_points_than_anything_else(sparse):
    found = points_of(record(step, None) for step in range(1000, 2000))
    assert len(found) < 30
    assert all(math.isnan(values["Loss/train"]) for _, values in found)
