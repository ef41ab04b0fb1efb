"""How a launch ends that has no step left to take."""

import math
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

from trainer.evaluation.evaluator import Evaluator
from trainer.loop import train
from trainer.safety.guard import LossGuard

STEP = 7


def at_its_last_step(evaluator, loss):
    """A run that stands at its last step, where nobody may have evaluated it: it was interrupted there."""
    return SimpleNamespace(
        bare_model=torch.nn.Linear(2, 2),
        progress=SimpleNamespace(step=STEP, tokens=70),
        config=MagicMock(max_steps=STEP),
        evaluator=evaluator,
        validate=lambda: SimpleNamespace(loss=loss),
        corpus=SimpleNamespace(validation_bytes=lambda number: None),
        guard=LossGuard(9),
        exam=MagicMock(),
        reporter=MagicMock(),
        stopwatch=MagicMock(),
    )


@pytest.mark.parametrize(("loss", "kind"), [(2.5, "finished"), (math.nan, "diverged")])
def test_a_last_step_that_was_not_evaluated_is_before_the_run_counts_as_finished(loss, kind):
    evaluator = Evaluator(5, STEP, "held out")
    evaluator.record(5, 3.0)
    assert train(at_its_last_step(evaluator, loss)).kind == kind
    assert evaluator.last_step == STEP
    assert evaluator.loss_at(STEP) == (2.5 if kind == "finished" else None)


def test_a_last_step_whose_validation_loss_was_not_finite_is_no_finished_run_when_it_is_started_again():
    evaluator = Evaluator(5, STEP, "held out")
    evaluator.record(STEP, math.nan)
    assert train(at_its_last_step(evaluator, 2.5)).kind == "diverged"
    assert train(at_its_last_step(Evaluator(5, STEP, None), 2.5)).kind == "finished", (
        "without held-out text the weights decide"
    )
