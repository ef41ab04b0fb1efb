"""How many steps and kills fit a time, and where the kills fall."""

import random

import pytest

from trainer.tools.selftest.choose import (
    MAX_KILLS,
    MIN_KILLS,
    MIN_PERIOD_SECONDS,
    Costs,
    choose,
    is_too_short,
    kills,
    longer,
)

EVERYDAY = Costs(start_seconds=10.0, step_seconds=0.4, end_seconds=1.0)
COSTS = [EVERYDAY, Costs(5.0, 0.003, 0.1), Costs(1.0, 0.05, 0.0), Costs(60.0, 17.0, 30.0), Costs(0.0, 0.0, 0.0)]


@pytest.mark.parametrize("seconds", [60, 110, 300, 3600])
def test_what_is_chosen_fits_the_time(seconds):
    choice = choose(EVERYDAY, seconds)
    assert choice.seconds <= seconds
    assert MIN_KILLS <= choice.num_kills <= MAX_KILLS


def test_more_time_gives_more_kills_and_more_steps():
    short, long = choose(EVERYDAY, 70), choose(EVERYDAY, 3600)
    assert short.num_kills < long.num_kills == MAX_KILLS
    assert short.steps < long.steps


def test_where_nothing_fits_it_is_the_least_with_an_estimate_that_says_so():
    choice = choose(Costs(60.0, 17.0, 30.0), 100)
    assert (choice.steps, choice.every_steps, choice.num_kills) == (9, 3, MIN_KILLS)
    assert choice.seconds == pytest.approx(4 * 60 + 2 * 30 + (2 * 9 + 2 * 3) * 17)


def test_short_steps_are_taken_in_such_numbers_that_a_kill_meets_its_step():
    choice = choose(Costs(5.0, 0.003, 0.1), 60)
    assert choice.every_steps * 0.003 >= MIN_PERIOD_SECONDS


@pytest.mark.parametrize("costs", COSTS)
@pytest.mark.parametrize("seconds", [1, 60, 3600])
def test_every_kill_falls_between_two_checkpoints_after_the_first_and_before_the_end(costs, seconds):
    choice = choose(costs, seconds)
    for seed in range(50):
        planned = kills(choice, costs.step_seconds, random.Random(seed))
        steps = [kill.step for kill in planned]
        assert len(planned) == choice.num_kills
        assert steps == sorted(set(steps))
        assert all(choice.every_steps < step < choice.steps and step % choice.every_steps for step in steps)
        assert all(0 <= kill.delay_seconds <= costs.step_seconds for kill in planned)
        assert {kill.hits_writer for kill in planned} == {True, False}


def test_the_moments_are_random():
    choice = choose(EVERYDAY, 3600)
    assert len({tuple(kills(choice, 0.4, random.Random(seed))) for seed in range(20)}) == 20


def test_a_choice_made_while_the_machine_was_busy_is_too_short_once_steps_are_fast():
    busy, quiet = Costs(5.0, 0.226, 2.0), Costs(5.0, 0.01, 2.0)
    choice = choose(busy, 1)
    assert not is_too_short(choice, busy)
    assert is_too_short(choice, quiet)
    assert not is_too_short(longer(choice, quiet), quiet)


def test_a_longer_choice_has_the_same_kills_over_a_multiple_of_the_steps():
    short = choose(EVERYDAY, 110)
    more = longer(short, EVERYDAY)
    assert more.num_kills == short.num_kills
    assert more.every_steps == 3 * short.every_steps
    assert more.steps == 3 * short.steps
    assert more.seconds > short.seconds
