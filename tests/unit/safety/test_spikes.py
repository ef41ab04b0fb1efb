"""Which steps are spikes: by the device's verdict, what the host keeps of it, and what becomes of both over a restart."""

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.config.unattended import SpikeConfig
from trainer.safety.spikes import LEAST_SPREAD, SpikeGuard, robust_scores
from trainer.step_result import SaveRequest, StepResult, Verdict

SETTINGS = SpikeConfig(skip=True, window=16, min_history=8, max_in_a_row=3)


def guard_of(**changes):
    return SpikeGuard(SpikeConfig(**{**SETTINGS.model_dump(), **changes}), torch.device("cpu"))


def result_of(step, loss, verdict, norm=1.0, score=0.0):
    return StepResult(step, loss, norm, 0, SaveRequest.NONE, verdict=verdict, score=score)


def take(guard, step, loss, norm=1.0):
    """One step through device and host; its verdict and whether its update is skipped."""
    judged = guard.judge(torch.tensor(loss), torch.tensor(norm))
    verdict = Verdict(int(judged.verdict))
    guard.take(result_of(step, loss, verdict, norm, float(judged.score)))
    return verdict, not math.isfinite(float(judged.norm))


def warmed(**changes):
    guard = guard_of(**changes)
    for step in range(12):
        assert take(guard, step, 3.0 - 0.01 * step, 1.0 + 0.1 * (step % 3)) == (Verdict.ACCEPTED, False)
    return guard


def test_a_spike_of_the_loss_or_of_the_norm_is_skipped_and_moves_nothing():
    guard = warmed()
    before = guard.state_dict()["accepted"]
    assert take(guard, 12, 150.0) == (Verdict.SPIKE, True)
    assert take(guard, 13, 2.9, 50.0) == (Verdict.SPIKE, True)
    assert guard.state_dict() == {"accepted": before, "in_a_row": 2, "in_all": 2}
    assert take(guard, 14, 2.9) == (Verdict.ACCEPTED, False)
    assert guard.state_dict()["in_a_row"] == 0


def test_what_falls_is_no_spike_and_neither_is_anything_before_there_is_a_history():
    guard = guard_of()
    for step, loss in enumerate((9.0, 900.0, 9.0, 1.0, 5.0, 2.0, 3.0)):
        assert take(guard, step, loss) == (Verdict.ACCEPTED, False)
    assert take(warmed(), 12, 0.001, 0.001) == (Verdict.ACCEPTED, False)


@pytest.mark.parametrize("numbers", [(math.nan, 1.0), (2.5, math.inf), (math.inf, math.nan)])
def test_what_is_not_finite_is_no_spike_enters_no_history_and_leaves_the_count_as_it_is(numbers):
    guard = warmed()
    take(guard, 12, 150.0)
    before = guard.state_dict()
    verdict, is_skipped = take(guard, 13, *numbers)
    assert verdict == Verdict.NOT_FINITE
    assert is_skipped is not math.isfinite(numbers[1]), "by the norm alone, as without the guard"
    assert guard.state_dict() == before
    assert take(guard, 14, 2.9) == (Verdict.ACCEPTED, False)


def test_after_too_many_in_a_row_the_new_level_is_what_is_usual():
    guard = warmed()
    found = [take(guard, 12 + number, 6.0)[0] for number in range(12)]
    assert found == [Verdict.SPIKE] * 3 + [Verdict.NEW_LEVEL] + [Verdict.ACCEPTED] * 8
    assert guard.state_dict()["accepted"] == [[6.0, 1.0]] * 9
    assert take(guard, 24, 30.0)[0] == Verdict.SPIKE, "measured by the new level"


def test_where_it_only_tells_the_update_is_taken():
    assert take(warmed(skip=False), 12, 150.0) == (Verdict.SPIKE, False)
    guard = warmed(skip=False, max_in_a_row=99)
    told = [
        step
        for step in range(12, 20)
        if take(guard, step, 150.0) and guard.is_told(result_of(step, 150.0, Verdict.SPIKE))
    ]
    assert told == [12, 13, 15, 19], "the first, second, fourth and eighth"
    unable = SpikeGuard(SETTINGS, torch.device("cpu"), can_skip=False)
    assert not unable.skips


@given(
    st.lists(st.tuples(st.floats(0.5, 4.0, width=32), st.floats(0.125, 90.0, width=32)), max_size=60),
    st.integers(0, 60),
)
def test_a_restart_anywhere_changes_no_verdict(numbers, at):
    whole, stopped = guard_of(), guard_of()
    for step, (loss, norm) in enumerate(numbers):
        if step == at:
            state = stopped.state_dict()
            stopped = guard_of()
            stopped.load_state_dict(state)
        assert take(whole, step, loss, norm) == take(stopped, step, loss, norm)
        assert whole.state_dict() == stopped.state_dict()
        assert sorted(whole._history[0].tolist()) == sorted(stopped._history[0].tolist())


@given(st.lists(st.floats(0.5, 40.0, width=32), min_size=1, max_size=20), st.floats(0.5, 400.0, width=32))
def test_the_score_is_the_distance_from_the_median_in_median_deviations(history, number):
    padded = torch.full((1, 20), math.nan)
    padded[0, : len(history)] = torch.tensor(history)
    (score,) = robust_scores(padded, torch.tensor(len(history)), torch.tensor([number])).tolist()
    median = statistics.median_low(history)
    spread = max(statistics.median_low(abs(each - median) for each in history), LEAST_SPREAD * median)
    assert score == pytest.approx((number - median) / spread, rel=1e-3, abs=1e-3)
