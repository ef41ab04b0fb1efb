import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.checkpoint.save.forecast import (
    CLOCK,
    FINAL,
    Ahead,
    FreeSpace,
    best_ahead,
    days_until_full,
    full_sentence,
    permanent_bytes_a_day,
    saves_ahead,
    written_sentence,
)
from trainer.config.schema import CheckpointConfig
from trainer.text import duration


def ahead(**changes):
    """300 steps of 0.01 s, and a clock that wants a save every minute."""
    usual = {
        "step": 0,
        "max_steps": 300,
        "step_seconds": 0.01,
        "sequences": 0,
        "global_batch": 4,
        "sequences_per_epoch": 400,
        "tokens": 0,
        "clock_seconds": 60.0,
        "evaluation_every_steps": None,
    }
    return Ahead(**{**usual, **changes})


def saves(settings=None, **changes):
    return saves_ahead(CheckpointConfig(**(settings or {})), ahead(**changes))


def test_saves_at_steps_are_counted():
    assert saves({"every_steps": 2}) == {"checkpoint.every_steps": 150}
    assert saves({"every_steps": 2}, step=100) == {"checkpoint.every_steps": 100}
    assert saves({"every_steps": 7}) == {"checkpoint.every_steps": 42, FINAL: 1}
    assert saves({"keep_every_steps": 6, "every_steps": 4}) == {
        "checkpoint.keep_every_steps": 50,
        "checkpoint.every_steps": 50,
    }
    assert saves({"keep_epochs": 1}, sequences=40, tokens=40) == {"checkpoint.keep_epochs": 3, FINAL: 1}
    assert saves({"every_tokens": 1000}, step=10, sequences=40, tokens=1280) == {
        "checkpoint.every_tokens": 37,
        FINAL: 1,
    }


def test_there_is_always_the_last_one_and_what_is_written_is_never_less_than_it():
    assert saves() == {FINAL: 1} and saves(step=300) == {} and saves(clock_seconds=math.inf) == {FINAL: 1}
    assert "about 1 checkpoint of 246 kB" in written_sentence(246_000, saves(), 0, 3.0) and written_sentence(
        246_000, saves(), 0, 3.0
    ).endswith(": 246 kB")


def test_the_clock_fills_the_gaps_between_the_others():
    assert saves(step_seconds=10.0) == {FINAL: 1, CLOCK: 49}
    assert saves({"every_minutes": 0.5}, step_seconds=10.0) == {FINAL: 1, CLOCK: 99}
    assert saves({"every_steps": 100}, step_seconds=10.0) == {"checkpoint.every_steps": 3, CLOCK: 48}
    assert saves({"every_steps": 6}, step_seconds=10.0) == {"checkpoint.every_steps": 50}


def test_best_ones_are_counted_where_nothing_else_is_saved():
    assert best_ahead(CheckpointConfig(), ahead(evaluation_every_steps=10)) == 30
    assert best_ahead(CheckpointConfig(every_steps=20), ahead(evaluation_every_steps=10)) == 15
    assert (
        best_ahead(CheckpointConfig(keep_best=0), ahead(evaluation_every_steps=10))
        == best_ahead(CheckpointConfig(), ahead())
        == 0
    )


@given(st.integers(0, 60), st.integers(1, 60), *[st.none() | st.integers(1, 9)] * 2, st.integers(1, 9))
def test_counts_at_steps_are_those_of_taking_the_steps(step, steps, every, keep_every, evaluation):
    settings = CheckpointConfig(every_steps=every, keep_every_steps=keep_every)
    run = ahead(step=step, max_steps=step + steps, evaluation_every_steps=evaluation, clock_seconds=math.inf)
    saved = [
        n
        for n in range(step + 1, step + steps + 1)
        if n == step + steps or any(p and n % p == 0 for p in (every, keep_every))
    ]
    assert sum(saves_ahead(settings, run).values()) == len(saved)
    assert best_ahead(settings, run) >= len(
        [n for n in range(step + 1, step + steps + 1) if n % evaluation == 0 and n not in saved]
    )


def test_what_is_written_is_said_by_its_causes_and_for_a_day_where_the_run_is_longer():
    text = written_sentence(1_487_000_000, {"checkpoint.every_steps": 150, CLOCK: 850}, 30, 34 * 86400.0)
    for words in (
        "1,000 checkpoints of 1.49 GB",
        "150 by checkpoint.every_steps",
        f"850 by {CLOCK}",
        "up to 30 more",
        "1.49 TB",
        "43.7 GB a day",
        "34d 0h",
    ):
        assert words in text
    assert "a day" not in written_sentence(1, {FINAL: 1}, 0, 80_000.0)


def test_a_bound_on_all_bytes_keeps_the_disk_from_filling():
    settings = CheckpointConfig(keep_every_steps=4320)
    bounded = CheckpointConfig(keep_every_steps=4320, max_disk_bytes=10**6)
    assert permanent_bytes_a_day(1000, 2.0, settings) > 0 == permanent_bytes_a_day(1000, 2.0, bounded)


def test_the_trend_of_free_bytes_does_not_see_saves_and_prunings():
    space = FreeSpace()
    for number in range(40):
        in_flight = 5_000_000_000 if number % 3 == 0 else 0
        assert (space.growth_bytes_a_day() is None) == (number < 6)
        space.look(number * 300.0, 10**12 - number * 1_000_000 - in_flight)
    space.look(40 * 300.0, 10**11)  # somebody else's large file, for a moment
    assert space.growth_bytes_a_day() == pytest.approx(1_000_000 * 288, rel=0.01)


def test_looks_that_follow_each_other_closely_are_left_out_and_old_ones_forgotten():
    space = FreeSpace()
    for number in range(1000):
        space.look(number * 1.0, 10**12)
    assert space.growth_bytes_a_day() is None, "four looks in a thousand seconds"
    for number in range(1, 60):
        space.look(1000 + number * 300.0, 10**12 - number * 10**9)
    for number in range(60, 108):
        space.look(1000 + number * 300.0, 10**12 - 59 * 10**9 - number * 1000)
    assert space.growth_bytes_a_day() == pytest.approx(288_000)


def test_a_disk_that_empties_never_fills():
    assert "does not fill" in full_sentence(100, -5.0, None, 1e6) and "does not fill" in full_sentence(100, 0.0, 0.0, 1)
    assert f"it is full in {duration(20 * 86400)}, " in full_sentence(100, 5.0, None, 1e6)
    assert full_sentence(10**12, 0.0, -5.0, 1e6) == "1 TB are free on the disk of the checkpoints, and it does not fill"


def test_checkpoints_kept_for_good_fill_the_disk_by_the_policy():
    every, never = CheckpointConfig(keep_every_steps=4320), CheckpointConfig(keep_every_steps=None)
    assert permanent_bytes_a_day(1000, step_seconds=2.0, settings=every) == 10_000
    assert permanent_bytes_a_day(1000, 2.0, never) == 0.0 and permanent_bytes_a_day(1000, 0.0, every) == 0.0


def test_the_sooner_of_policy_and_measurement_says_when_the_disk_is_full():
    month = 30 * 86400.0
    assert full_sentence(10**12, 5e10, None, month) == (
        "1 TB are free on the disk of the checkpoints, and 50 GB a day go (for the checkpoints kept for good): it is full in 20d 0h, before the "
        "run ends: make room, or keep fewer"
    )
    assert full_sentence(10**12, 5e8, 2e10, month).endswith(
        "20 GB a day go (as measured): it is full in 50d 0h, after the run ends"
    )


def test_the_days_until_the_disk_is_full_go_by_what_fills_it_faster():
    assert days_until_full(10**12, 10**11, None) == 10
    assert days_until_full(10**12, 10**11, 2.0 * 10**11) == 5
    assert days_until_full(10**12, 0.0, -5.0) is None
