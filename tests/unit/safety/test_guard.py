import math

from trainer.safety.guard import LossGuard


def test_finite_steps_pass_without_a_word(caplog):
    guard = LossGuard(2)
    assert [guard.judge(step, 1.0, 1.0) for step in range(5)] == [None] * 5 and not caplog.text


def test_too_many_skipped_steps_in_a_row_end_the_run(caplog):
    guard = LossGuard(2)
    said = [guard.judge(step, 1.0, norm) for step, norm in enumerate((math.nan, 1.0, math.inf, math.nan))]
    assert said[:3] == [None] * 3
    assert said[3] == "2 steps in a row had a gradient that is not finite, the last with loss 1"
    assert "the update is skipped (2 in a row, 3 in all)" in caplog.text


def test_a_finite_gradient_of_an_infinite_loss_is_no_skipped_step():
    assert LossGuard(1).judge(1, math.inf, 1.0) is None


def test_after_a_new_beginning_the_count_is_anew_and_the_weights_are_in_doubt_until_a_good_step():
    guard = LossGuard(2)
    assert guard.judge(1, math.nan, math.nan) is None and guard.judge(2, math.nan, math.nan)
    guard.start_over()
    assert guard.in_doubt and guard.judge(3, math.nan, math.nan) is None
    guard.judge(4, 1.0, 1.0)
    assert not guard.in_doubt


def test_the_count_survives_a_restart():
    guard = LossGuard(2)
    guard.judge(1, math.nan, math.nan)
    assert guard.in_doubt
    again = LossGuard(2)
    again.load_state_dict(guard.state_dict())
    assert again.state_dict() == {"in_all": 1} and not again.in_doubt
    assert again.judge(2, math.nan, math.nan) is None, "steps in a row are counted within one launch"
    assert again.judge(3, math.nan, math.nan) is not None and again.state_dict() == {"in_all": 3}


def test_under_a_loss_scale_only_the_loss_tells_a_bad_step():
    guard = LossGuard(1, scaled=True)
    assert guard.judge(1, 2.0, math.inf) is None and not guard.in_doubt
    assert guard.judge(2, math.nan, 1.0) is not None
