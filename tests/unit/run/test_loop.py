"""How a launch ends that has no step left to take."""

import math
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

from trainer.config.schema import EvaluationConfig
from trainer.ending.outcomes import Outcome
from trainer.evaluation.schedule import EvalSchedule
from trainer.loop import train
from trainer.safety.guard import NonFiniteGuard

STEP = 7
EVERY_5 = EvaluationConfig(every_steps=5)


def at_its_last_step(schedule, loss):
    """A run that stands at its last step, where nobody may have evaluated it: it was interrupted there."""
    return SimpleNamespace(
        bare_model=torch.nn.Linear(2, 2),
        progress=SimpleNamespace(step=STEP, tokens=70),
        config=MagicMock(max_steps=STEP),
        eval_schedule=schedule,
        validate=lambda: SimpleNamespace(loss=loss),
        corpus=SimpleNamespace(validation_bytes=lambda number: None),
        guard=NonFiniteGuard(9),
        tasks=MagicMock(),
        reporter=MagicMock(),
        stopwatch=MagicMock(),
    )


@pytest.mark.parametrize(("loss", "outcome"), [(2.5, Outcome.FINISHED), (math.nan, Outcome.DIVERGED)])
def test_a_last_step_that_was_not_evaluated_is_before_the_run_counts_as_finished(loss, outcome):
    schedule = EvalSchedule(EVERY_5, STEP, "held out")
    schedule.record(5, 3.0)
    assert train(at_its_last_step(schedule, loss)).outcome == outcome
    assert schedule.last_step == STEP
    assert schedule.loss_at(STEP) == (2.5 if outcome == Outcome.FINISHED else None)


def test_a_last_step_whose_validation_loss_was_not_finite_is_no_finished_run_when_it_is_started_again():
    schedule = EvalSchedule(EVERY_5, STEP, "held out")
    schedule.record(STEP, math.nan)
    assert train(at_its_last_step(schedule, 2.5)).outcome == Outcome.DIVERGED
    assert train(at_its_last_step(EvalSchedule(EVERY_5, STEP, None), 2.5)).outcome == Outcome.FINISHED, (
        "without held-out text the weights decide"
    )
