import math

import pytest

from tests.unit.tools.bench.made import BF16, CURRENT, figures, steps
from trainer.tools.bench.measure import loss_gap, peaks_of


def test_the_step_is_the_mean_of_the_rounds_medians_without_the_warm_up_however_long_a_round_was():
    found = figures(BF16, steps(1.0, num=50), steps(1.2), tokens_a_step=1100)
    assert found.step_seconds == pytest.approx(1.1)
    assert found.tokens_per_second == pytest.approx(1000)
    assert found.spread == pytest.approx(0.2 / 1.1)


def test_a_slow_step_among_many_changes_nothing():
    round_one = steps(1.0)
    round_one[-1]["step_seconds"] = 50.0
    assert figures(BF16, round_one, steps(1.0)).step_seconds == 1.0


def test_an_mfu_that_nobody_knows_is_none():
    assert figures(BF16, steps()).mfu is None
    assert figures(BF16, steps(mfu=0.4)).mfu == 0.4


def test_memory_is_that_of_a_look_after_the_first_which_came_before_the_first_step():
    records = steps()
    records[0]["memory/peak_bytes"] = 9e9
    assert figures(BF16, records).peak_bytes is None
    records[-1]["memory/peak_bytes"] = 7e9
    assert figures(BF16, records).peak_bytes == 7e9
    assert peaks_of([{"memory/peak_resident_bytes": 1.0}, {}, {"memory/peak_resident_bytes": 2.0}]) == [1.0, 2.0]


def test_the_loss_is_compared_over_the_last_third_of_the_steps_that_both_have():
    ours = [9.0, 9.0, 9.0, 9.0, 5.05, 5.05, 77.0]
    assert loss_gap(ours, [5.0] * 6) == pytest.approx(0.01)


@pytest.mark.parametrize(("loss", "has_run_away"), [(5.05, False), (4.0, False), (5.2, True), (None, True)])
def test_a_loss_that_runs_away_is_told(loss, has_run_away):
    found = figures(CURRENT, steps(losses=[5.0] * 6 + [loss] * 3), reference=steps())
    assert found.has_run_away is has_run_away
    assert loss is not None or found.loss_gap == math.inf


def test_a_loss_that_is_no_number_early_or_in_the_second_round_is_told_too():
    assert figures(CURRENT, steps(losses=[None] + [5.0] * 8), reference=steps()).has_run_away
    assert figures(CURRENT, steps(), steps(losses=[5.0] * 8 + [None]), reference=steps()).has_run_away


def test_without_bf16_there_is_no_gap():
    assert figures(CURRENT, steps()).loss_gap is None
