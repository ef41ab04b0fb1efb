"""Comparisons of synthetic runs: what holds for every pair, and how often the verdicts are wrong."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.written_runs import compared, losses, write_run
from trainer.plots import MAX_POINTS, extremes, means
from trainer.tools.compare import noise

finite = st.floats(0.1, 20.0)


def pair(first, second, **facts):
    with tempfile.TemporaryDirectory() as folder:
        return compared(write_run(Path(folder), "a", first), write_run(Path(folder), "b", second, **facts)).pairs[0]


@settings(max_examples=25, deadline=None)
@given(st.lists(finite, min_size=8, max_size=80))
def test_identical_runs_have_a_gap_of_exactly_nothing(values):
    found = pair(values, values)
    assert found.is_equal
    assert found.verdict == "no difference"
    assert all(part.gap.value == 0.0 for part in found.segments)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(finite, min_size=8, max_size=60),
    st.lists(finite, min_size=8, max_size=60),
    st.sampled_from([500, 1000, 1700]),
)
def test_turning_a_pair_round_turns_the_gap_round(first, second, step_tokens):
    with tempfile.TemporaryDirectory() as folder:
        a, b = write_run(Path(folder), "a", first), write_run(Path(folder), "b", second, step_tokens=step_tokens)
        there, back = (compared(*runs).pairs[0].judged.get("loss") for runs in ((a, b), (b, a)))
    assert (there is None) == (back is None)
    if there:
        assert there.gap.value == pytest.approx(-back.gap.value, abs=1e-9)
        assert there.gap.window_error == pytest.approx(back.gap.window_error)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.floats(-0.3, 0.3))
def test_the_gap_is_what_was_added(seed, added):
    values = losses(100, seed=seed)
    assert pair(values, values + added).judged["loss"].gap.value == pytest.approx(added, abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.none() | finite, min_size=1, max_size=400), st.integers(1, 50))
def test_thinning_keeps_the_range_and_the_mean(values, number):
    filled = np.array([value is not None for value in values])
    numbers = np.array([np.nan if value is None else value for value in values])
    places = np.where(filled, np.arange(float(len(values))), np.nan)
    x, y = extremes(places, numbers, numbers)
    assert len(x) == len(y) <= MAX_POINTS
    x, y = means(places, numbers, filled.astype(float), number)
    assert len(x) == len(y) <= number
    if filled.any():
        assert np.nanmin(numbers) <= y.min() + 1e-9
        assert y.max() - 1e-9 <= np.nanmax(numbers)


def told_apart(number_of_pairs: int, *, memory: float, noise_of_step: float, planted: float = 0.0) -> float:
    """The share of pairs of seeds that are told apart: noise that remembers, and an end that wanders from seed to seed as the default says."""
    generator = np.random.default_rng(7)
    wander = noise.default_fraction("loss", 200_000, same_batches=False)
    told = 0
    for _ in range(number_of_pairs):
        a, b = (losses(40, seed=int(generator.integers(2**31)), noise=noise_of_step, memory=memory) for _ in range(2))
        gaps = b * (1 + wander * generator.normal() + planted) - a * (1 + wander * generator.normal())
        told += noise.gap(gaps, float(a.mean()), noise.spread([], wander)).is_beyond_noise
    return told / number_of_pairs


@pytest.mark.parametrize("memory", [0.0, 0.5, 0.7])
def test_two_seeds_are_seldom_told_apart(memory):
    assert told_apart(400, memory=memory, noise_of_step=0.1) <= 0.08


def test_a_planted_gap_of_three_percent_is_found():
    assert told_apart(100, memory=0.5, noise_of_step=0.02, planted=0.03) >= 0.9
