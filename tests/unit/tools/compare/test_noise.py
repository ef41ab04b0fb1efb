"""The arithmetic of a gap's noise."""

import math

import numpy as np
import pytest

from trainer.tools.compare import noise
from trainer.tools.compare.noise import Spread, default_fraction, gap, spread, standard_error, t_quantile

NONE = Spread(0.0, 4)


@pytest.mark.parametrize(("dof", "known"), [(3, 3.1824), (4, 2.7764), (10, 2.2281), (19, 2.0930), (math.inf, 1.9600)])
def test_the_quantile_is_students(dof, known):
    assert t_quantile(dof) == pytest.approx(known, rel=5e-3)


def test_the_error_of_independent_blocks_is_the_textbooks():
    blocks = np.random.default_rng(0).normal(0, 1, 20_000)
    error, dof = standard_error(blocks)
    assert error == pytest.approx(1 / math.sqrt(20_000), rel=0.05)
    assert dof == pytest.approx(20_000, rel=0.05)


def test_blocks_that_remember_have_a_larger_error():
    blocks = np.zeros(20_000)
    for number, kick in enumerate(np.random.default_rng(0).normal(0, 1, 19_999), start=1):
        blocks[number] = 0.5 * blocks[number - 1] + kick
    error, dof = standard_error(blocks)
    assert error == pytest.approx(blocks.std() * math.sqrt(3 / 20_000), rel=0.05)
    assert dof == pytest.approx(20_000 / 3, rel=0.1)


def test_blocks_that_swing_back_and_forth_are_not_more_certain_than_independent_ones():
    blocks = np.tile([1.0, -1.0], 10)
    assert standard_error(blocks) == (pytest.approx(blocks.std(ddof=1) / math.sqrt(20)), 19)


def test_blocks_that_are_all_equal_are_certain_and_those_that_only_rise_are_not():
    assert standard_error(np.full(20, 0.3))[0] == pytest.approx(0.0, abs=1e-9)
    assert standard_error(np.arange(20.0))[0] > np.arange(20.0).std() / 2


def test_equal_runs_have_a_gap_of_exactly_nothing():
    assert gap(np.zeros(20), 3.0, Spread(0.01, 4)) == noise.Gap(0.0, 0.0, 0.0, 0.0)
    assert not gap(np.zeros(20), 3.0, Spread(0.01, 4)).is_beyond_noise


def test_the_band_has_both_parts():
    blocks = np.random.default_rng(1).normal(0.5, 0.1, 20)
    window, both = gap(blocks, 3.0, NONE), gap(blocks, 3.0, Spread(0.01, 4))
    assert window.value == both.value == pytest.approx(0.5, abs=0.1)
    assert window.window_error == both.window_error
    assert window.band == pytest.approx(t_quantile(standard_error(blocks)[1]) * window.window_error)
    assert both.run_error == pytest.approx(math.sqrt(2) * 0.03)
    assert both.band > math.hypot(window.band, 2 * both.run_error)


def test_a_few_blocks_have_no_error_of_their_own():
    assert gap([0.1, 0.2], 3.0, Spread(0.01, 4)).window_error == 0.0


def test_an_unmeasured_spread_is_the_default():
    assert spread([{"a": 3.0}, {"b": 4.0}], 0.003) == Spread(pytest.approx(0.003), noise.DEFAULT_DOF)


def test_seeds_of_a_recipe_measure_the_spread_and_the_default_keeps_its_weight():
    found = spread([{"a": 2.98, "b": 3.02}, {"c": 5.0}], 0.003)
    deviation = math.sqrt(2) * 0.02 / 3.0  # the two seeds' standard deviation, one degree of freedom
    assert found.measured_on == ("a", "b")
    assert found.dof == noise.DEFAULT_DOF + 1
    assert found.fraction == pytest.approx(math.sqrt((4 * 0.003**2 + deviation**2) / 5))
    lucky = spread([{"a": 3.0, "b": 3.0}], 0.003)
    assert lucky.fraction == pytest.approx(0.003 * math.sqrt(4 / 5))
    many = spread([{str(seed): 3 + 0.06 * (-1) ** seed for seed in range(100)}], 0.003)
    assert many.fraction == pytest.approx(0.02, rel=0.03)


def test_the_default_falls_with_the_tokens_and_is_of_the_order_of_what_was_measured():
    assert default_fraction("loss", 1.7e9, same_batches=False) * 3.28 == pytest.approx(0.0011, rel=0.1)
    assert default_fraction("val_loss", 1.7e9, same_batches=False) * 3.28 == pytest.approx(0.0015, rel=0.1)
    assert (
        default_fraction("loss", 10, same_batches=False) == default_fraction("loss", 1e5, same_batches=False) == 0.006
    )
    for what in ("loss", "val_loss", "bits_per_byte"):
        shares = [default_fraction(what, tokens, same_batches=same) for tokens in (1e6, 1e12) for same in (False, True)]
        assert shares[0] > shares[1] > shares[2] == shares[3] > 0
