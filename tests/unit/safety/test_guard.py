import math

import pytest

from tests.messages import logged, says
from trainer.safety.guard import LossLevel, NonFiniteGuard, UsualLoss


def test_finite_steps_pass_without_a_word(caplog):
    guard = NonFiniteGuard(2)
    assert [guard.judge(step, 1.0, 1.0) for step in range(5)] == [None] * 5
    assert not caplog.text


def test_too_many_skipped_steps_in_a_row_end_the_run(caplog):
    guard = NonFiniteGuard(2)
    said = [guard.judge(step, 1.0, norm) for step, norm in enumerate((math.nan, 1.0, math.inf, math.nan))]
    assert said[:3] == [None] * 3
    says(said[3], "2 steps", "not finite", "loss 1")
    logged(caplog, "update", 2, 3)


def test_a_finite_gradient_of_an_infinite_loss_is_no_skipped_step():
    assert NonFiniteGuard(1).judge(1, math.inf, 1.0) is None


def test_after_a_new_beginning_the_count_is_anew_and_the_weights_are_in_doubt_until_a_good_step():
    guard = NonFiniteGuard(2)
    assert guard.judge(1, math.nan, math.nan) is None
    assert guard.judge(2, math.nan, math.nan)
    guard.start_over()
    assert guard.in_doubt
    assert guard.judge(3, math.nan, math.nan) is None
    assert guard.num_last_skipped == 3, "what was skipped before it was started over counts at the end of a run"
    guard.judge(4, 1.0, 1.0)
    assert not guard.in_doubt
    assert guard.num_last_skipped == 0


def test_the_count_survives_a_restart():
    guard = NonFiniteGuard(2)
    guard.judge(1, math.nan, math.nan)
    assert guard.in_doubt
    again = NonFiniteGuard(2)
    again.load_state_dict(guard.state_dict())
    assert again.state_dict() == guard.state_dict()
    assert again.state_dict()["in_all"] == 1
    assert not again.in_doubt
    assert again.judge(2, math.nan, math.nan) is None, "steps in a row are counted within one launch"
    assert again.judge(3, math.nan, math.nan) is not None
    assert again.state_dict()["in_all"] == 3
    NonFiniteGuard(2).load_state_dict({"in_all": 1})  # as earlier versions wrote it


def test_under_a_loss_scale_only_the_loss_tells_a_bad_step():
    guard = NonFiniteGuard(1, scaled=True)
    assert guard.judge(1, 2.0, math.inf) is None
    assert not guard.in_doubt
    assert guard.judge(2, math.nan, 1.0) is not None


def unsure_after(*losses):
    guard = NonFiniteGuard(99)
    for step, loss in enumerate(losses, start=1):
        guard.judge(step, loss, loss)
    return guard.first_unsure_step


NOISY = [3.0 + 0.1 * (step % 5) for step in range(50)]


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ((), 0),
        ((math.nan,) * 3, 0),
        ((5.5, math.nan, math.nan), 1),
        ((5.5, 5.6, 1e12, math.nan), 2),
        ((5.5, 1e12, 1e13, 1e14), 1),
        ((*NOISY, math.nan), 50),
        ((*NOISY, 4.9, 6.0, 7.0, math.inf), 50),
        ((*NOISY, 6.0, 3.3, math.nan), 52),
        ((*NOISY, *(9.0,) * 99, math.nan), 50),
        ((*NOISY, *(9.0,) * 100, math.nan), 150),
        ((*NOISY, *(9.0,) * 110, 9.1), 161),
        (tuple(10.0 * 0.99**step for step in range(300)), 300),
        ((0.0,) * 40, 40),
    ],
)
def test_what_may_have_diverged_begins_at_the_last_step_with_a_usual_loss(losses, expected):
    assert unsure_after(*losses) == expected


def test_which_losses_are_usual_survives_a_restart():
    before = UsualLoss()
    for step, loss in enumerate([*NOISY, 8.0, 8.0]):
        before.take(step, loss)
    again = UsualLoss()
    again.load_state_dict(before.state_dict())
    assert again.step == 49
    assert again.state_dict() == before.state_dict()
    for step in range(52, 150):
        before.take(step, 8.0)
        again.take(step, 8.0)
        assert again.state_dict() == before.state_dict()
    assert again.step == 149


def first_reason(losses):
    """The step by which a run with these losses has diverged; None if it never has."""
    guard = NonFiniteGuard(9)
    found = (step for step, loss in enumerate(losses, start=1) if guard.judge(step, loss, 1.0))
    return next(found, None), guard.is_lost, guard.first_unsure_step


def test_a_loss_that_has_left_for_good_is_a_divergence_that_began_at_the_last_usual_one():
    step, is_lost, began = first_reason([*NOISY, *(6.0,) * 40])
    assert (is_lost, began) == (True, 50)
    assert 50 + LossLevel.WINDOW // 2 <= step <= 50 + LossLevel.WINDOW


@pytest.mark.parametrize(
    "losses",
    [
        [*NOISY, *(4.1,) * 300],
        [*NOISY, *(150.0,) * 5, *NOISY, 150.0, *NOISY],
        [10.0 * 0.99**step for step in range(300)],
        [0.05 + 0.04 * (step % 2) for step in range(99)] + [0.8] * 99,
    ],
    ids=["another level", "spikes", "it falls", "what is small"],
)
def test_no_other_loss_is_one(losses):
    assert first_reason(losses)[0] is None


def test_what_is_known_of_the_level_survives_a_restart():
    guard, again = NonFiniteGuard(9), NonFiniteGuard(9)
    for step, loss in enumerate(NOISY):
        guard.judge(step, loss, 1.0)
    again.load_state_dict(guard.state_dict())
    assert again.state_dict() == guard.state_dict()
    assert any(again.judge(step, 6.0, 1.0) for step in range(50, 80))
    again.load_state_dict({"in_all": 0, "usual": UsualLoss().state_dict()})  # of an earlier version
    assert not any(again.judge(step, 6.0, 1.0) for step in range(50, 80))
