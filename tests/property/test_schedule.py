"""Properties of every schedule: within bounds, without jumps, and where it should be at its ends."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.messages import says
from trainer.errors import ConfigError
from trainer.optim.schedule import SCHEDULES, build_schedule


@st.composite
def settings(draw):
    max_steps = draw(st.integers(1, 3000))
    return {
        "max_steps": max_steps,
        "warmup_steps": draw(st.integers(0, max_steps)),
        "min_lr_fraction": draw(st.floats(0.0, 1.0)),
        "decay_fraction": draw(st.floats(0.0, 1.0)),
    }


each_schedule = pytest.mark.parametrize("name", SCHEDULES)


@each_schedule
@given(chosen=settings())
def test_the_multiplier_stays_between_zero_and_one(name, chosen):
    schedule = build_schedule(name, **chosen)
    assert all(0.0 <= schedule(step) <= 1.0 + 1e-12 for step in range(chosen["max_steps"] + 5))


@each_schedule
@given(chosen=settings())
def test_the_warmup_is_a_straight_line_that_ends_at_the_peak(name, chosen):
    schedule, warmup = build_schedule(name, **chosen), chosen["warmup_steps"]
    assert all(schedule(step) == pytest.approx((step + 1) / warmup) for step in range(warmup))
    if not warmup:
        assert schedule(0) == pytest.approx(1.0)


@each_schedule
@given(chosen=settings())
def test_after_the_peak_it_never_rises(name, chosen):
    schedule = build_schedule(name, **chosen)
    heights = [schedule(step) for step in range(max(chosen["warmup_steps"] - 1, 0), chosen["max_steps"] + 5)]
    assert all(later <= earlier + 1e-12 for earlier, later in zip(heights, heights[1:]))


@each_schedule
@given(chosen=settings())
def test_the_last_step_has_the_minimum_and_so_have_steps_after_it(name, chosen):
    schedule, last = build_schedule(name, **chosen), chosen["max_steps"] - 1
    has_room = last > max(chosen["warmup_steps"] - 1, 0)
    expected = chosen["min_lr_fraction"] if has_room and name != "constant" else 1.0
    assert schedule(last) == pytest.approx(expected, abs=1e-12)
    assert schedule(last + 100) == schedule(last)


@each_schedule
@given(chosen=settings())
def test_it_is_continuous_at_its_joints(name, chosen):
    """No step is further from the one before than the steepest of warm-up and decay allows."""
    schedule = build_schedule(name, **chosen)
    peak = max(chosen["warmup_steps"] - 1, 0)
    stretch = chosen["max_steps"] - 1 - peak
    if name == "wsd":
        stretch = min(stretch, max(1, round(chosen["decay_fraction"] * chosen["max_steps"])))
    steepest = max(1.6 / max(stretch, 1), 1.0 / max(chosen["warmup_steps"], 1) if chosen["warmup_steps"] else 0.0)
    heights = [schedule(step) for step in range(chosen["max_steps"])]
    assert all(abs(b - a) <= steepest + 1e-9 for a, b in zip(heights, heights[1:]))


@given(chosen=settings())
def test_wsd_is_at_the_peak_until_it_decays(chosen):
    schedule = build_schedule("wsd", **chosen)
    decaying = max(1, round(chosen["decay_fraction"] * chosen["max_steps"]))
    stable = range(max(chosen["warmup_steps"] - 1, 0), chosen["max_steps"] - decaying)
    assert all(schedule(step) == pytest.approx(1.0) for step in stable)


def test_cosine_is_halfway_at_half_time():
    schedule = build_schedule("cosine", max_steps=111, warmup_steps=11, min_lr_fraction=0.1)
    assert schedule(60) == pytest.approx(0.55)


@pytest.mark.parametrize(
    ("name", "wrong", "words"),
    [
        ("cosin", {}, "'cosine'"),
        ("cosine", {"warmup_steps": 11}, "warmup_steps 11"),
        ("cosine", {"min_lr_fraction": 1.5}, "min_lr_fraction 1.5"),
        ("wsd", {"decay_fraction": -0.5}, "decay_fraction -0.5"),
    ],
)
def test_a_schedule_that_cannot_be_is_a_config_error(name, wrong, words):
    with pytest.raises(ConfigError) as caught:
        build_schedule(name, max_steps=10, **wrong)
    says(caught.value, words)
