"""What a run steps over, as pure functions: which positions, for how long another learning rate, and how often in a row."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config.unattended import RollbackConfig
from trainer.data.order import beyond
from trainer.safety.rollback import ROLLBACKS, Rollbacks, Stretch, num_in_a_row, read_rollbacks, write_rollbacks


def rollbacks_of(*stretches, **settings):
    made = Rollbacks(RollbackConfig(**settings))
    made.learn(stretches, 0)
    return made


def positions(stretches, number, size=8):
    """Where the first batches of a run begin."""
    first = beyond(0, size, stretches)
    return [*itertools.accumulate(range(number - 1), lambda at, _: beyond(at + size, size, stretches), initial=first)]


def test_the_data_of_the_steps_that_diverged_are_stepped_over_and_nothing_else():
    first = Rollbacks(RollbackConfig()).next_one(6, 10, 80, 8)
    assert (first.step, first.last_step, first.begin, first.end) == (6, 10, 40, 80)
    assert positions([(40, 80)], 8) == [0, 8, 16, 24, 32, 80, 88, 96]


@given(st.integers(1, 20), st.integers(0, 9), st.integers(1, 20), st.integers(0, 9))
def test_a_second_divergence_names_the_positions_that_the_run_had_then(first, more, second, again):
    one = Rollbacks(RollbackConfig()).next_one(first, first + more, 8 * (first + more), 8)
    known, last = rollbacks_of(one), second + again
    had = positions(known.positions, last)
    two = known.next_one(second, last, had[-1] + 8, 8)
    assert two.begin in (had[second - 1], one.begin)
    assert two.end == had[-1] + 8
    known.learn([two], 0)
    after = positions(known.positions, second + 3)
    assert after[: second - 1] == had[: second - 1]
    assert not set(after) & set(had[second - 1 :])


def test_with_another_batch_size_no_batch_touches_what_is_stepped_over():
    at = positions([(40, 80)], 9, size=12)
    assert at == [0, 12, 24, 80, 92, 104, 116, 128, 140]


def test_the_rate_is_lower_for_so_many_steps_from_the_first_with_other_data_on():
    one = rollbacks_of(lr_factor=0.5, lr_steps=3).next_one(6, 10, 80, 8)
    known = rollbacks_of(one)
    assert [known.lr_factor(step) for step in range(4, 11)] == [1.0, 1.0, 0.5, 0.5, 0.5, 1.0, 1.0]


@pytest.mark.parametrize(
    ("stretches", "first_unsure", "expected"),
    [
        ([], 50, 0),
        ([(50, 60)], 50, 1),
        ([(50, 60)], 159, 1),
        ([(50, 60)], 160, 0),
        ([(50, 60), (61, 70), (165, 180)], 200, 3),
        ([(50, 60), (61, 70), (170, 180)], 200, 1),
    ],
)
def test_progress_that_lasts_begins_a_new_count(stretches, first_unsure, expected):
    assert num_in_a_row([Stretch(*steps, 0, 8) for steps in stretches], first_unsure) == expected


def test_what_was_decided_is_learnt_once_and_only_by_a_launch_from_before_it(tmp_path):
    assert read_rollbacks(tmp_path) == []
    one, two = Stretch(6, 10, 40, 80), Stretch(20, 30, 200, 290, 0.5, 7)
    write_rollbacks(tmp_path, [one, two])
    known = Rollbacks(RollbackConfig())
    for _ in range(2):
        known.learn(read_rollbacks(tmp_path), 10)
        assert known.stretches == (two,)
    again = Rollbacks(RollbackConfig())
    again.load_state_dict(known.state_dict())
    assert again.stretches == known.stretches
    known.learn(read_rollbacks(tmp_path), 5)
    assert known.stretches == (one, two)
    (tmp_path / ROLLBACKS).write_text("[{")
    assert read_rollbacks(tmp_path) == []


def test_a_stretch_that_is_empty_does_not_hide_one_that_ends_where_it_stands():
    """A rollback for a flipped bit steps over nothing: at its place another one may have stepped over data before."""
    known = Rollbacks(RollbackConfig())
    known.stretches = (Stretch(3, 6, 48, 48), Stretch(5, 6, 32, 48))
    assert known.next_one(6, 7, 56, 8).begin == 24
