"""Which steps end a run and which are saved, by results that all ranks have alike."""

import math
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

from trainer.config.unattended import SpikeConfig
from trainer.ending.outcomes import Ending, Outcome
from trainer.run.verdict import judge_step, reason_to_save
from trainer.safety.guard import NonFiniteGuard
from trainer.safety.spikes import SpikeGuard
from trainer.step_result import SaveRequest, StepResult

NONE = SaveRequest.NONE


def run_at(step, *, max_steps=9, max_bad_steps=2, falls_back=False, due=None, val_loss_is_not_finite=False):
    return SimpleNamespace(
        progress=SimpleNamespace(step=step),
        config=SimpleNamespace(max_steps=max_steps, checkpoint=SimpleNamespace(keep_best=True)),
        guard=NonFiniteGuard(max_bad_steps),
        spikes=SpikeGuard(SpikeConfig(), torch.device("cpu")),
        recheck=MagicMock(),
        rollbacks=SimpleNamespace(agreed=None),
        loader=MagicMock(),
        accelerator=SimpleNamespace(scaler=None),
        precision=SimpleNamespace(give_up_fp8=lambda step, reason: falls_back),
        requests=SimpleNamespace(stop_reason=None),
        checkpointer=SimpleNamespace(due=lambda: due),
        eval_schedule=SimpleNamespace(is_not_finite_at=lambda step: val_loss_is_not_finite),
    )


def result(step, *, grad_norm=1.0, stop_votes=0):
    return StepResult(step, 2.5, grad_norm, stop_votes, NONE)


@pytest.mark.parametrize(
    ("step", "results", "outcome"),
    [
        (3, [result(3)], None),
        (3, [], None),
        (9, [result(9)], "finished"),
        (3, [result(3, stop_votes=1)], "interrupted"),
        (9, [result(9, stop_votes=1)], "finished"),
        (3, [result(2, grad_norm=math.nan), result(3, grad_norm=math.inf)], "diverged"),
    ],
)
def test_a_step_is_the_last_of_a_run_that_is_over_stopped_or_diverged(step, results, outcome):
    ending = judge_step(run_at(step), results)
    assert (ending.outcome if ending else None) == outcome


def test_a_run_that_can_leave_fp8_goes_on_and_counts_bad_steps_anew():
    run = run_at(3, falls_back=True)
    assert judge_step(run, [result(2, grad_norm=math.nan), result(3, grad_norm=math.nan)]) is None
    assert judge_step(run, [result(4, grad_norm=math.nan)]) is None
    assert run.guard.num_last_skipped == 3


@pytest.mark.parametrize(
    ("outcome", "due", "is_best", "request_", "reason"),
    [
        (None, None, False, NONE, None),
        (None, None, False, SaveRequest.WRITE, "budget"),
        (None, None, False, SaveRequest.SNAPSHOT, "snapshot"),
        (None, None, True, SaveRequest.WRITE, "best"),
        (None, "periodic", True, SaveRequest.WRITE, "periodic"),
        ("finished", "periodic", True, NONE, "final"),
        ("interrupted", "periodic", True, NONE, "interrupt"),
        ("diverged", "periodic", True, SaveRequest.WRITE, None),
    ],
)
def test_the_reason_of_a_save(outcome, due, is_best, request_, reason):
    ended = Ending(Outcome(outcome), "") if outcome else None
    assert reason_to_save(run_at(3, due=due), ended, is_best, request_) == reason


@pytest.mark.parametrize(("due", "reason"), [(None, "asked"), ("periodic", "periodic")])
def test_what_somebody_asks_for_goes_before_the_clock_and_may_be_due_anyway(due, reason):
    run = run_at(3, due=due)
    assert reason_to_save(run, None, False, SaveRequest.WRITE, is_asked=True) == reason
    judge_step(run, [result(3, grad_norm=math.nan)])
    assert reason_to_save(run, None, False, SaveRequest.WRITE, is_asked=True) is None, (
        "it waits for weights without doubt"
    )


def test_weights_in_doubt_are_saved_only_where_the_run_has_finished():
    for run in (run_at(3, due="periodic"), run_at(3, due="periodic", val_loss_is_not_finite=True)):
        if not run.eval_schedule.is_not_finite_at(3):
            judge_step(run, [result(3, grad_norm=math.nan)])
        assert reason_to_save(run, None, True, SaveRequest.WRITE) is None
        assert reason_to_save(run, Ending(Outcome.INTERRUPTED, ""), False, NONE) is None
        assert reason_to_save(run, Ending(Outcome.FINISHED, ""), False, NONE) == "final"
