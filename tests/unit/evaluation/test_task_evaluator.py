"""Evaluating tasks leaves the model and the random state as they were, and needs a tokenizer."""

import pytest
import torch
from accelerate import Accelerator

from tests.accelerators import forget_accelerator
from tests.messages import refuses
from tests.unit.model.tiny import tiny_model
from trainer.data.assets import embedded_documents
from trainer.data.tokenizer import load_tokenizer
from trainer.errors import ConfigError, DataError
from trainer.evaluation.items import item
from trainer.evaluation.next_lines import next_line_items
from trainer.evaluation.task_evaluator import TaskEvaluator
from trainer.evaluation.tasks import Task
from trainer.model.scores import token_scores

BYTES = load_tokenizer("bytes")
LINES = Task("lines", next_line_items(embedded_documents("shakespeare", "validation"))[:4])


def evaluator_of(model, *tasks, tokenizer=BYTES, accelerator=None):
    return TaskEvaluator(tasks, model, token_scores, tokenizer, accelerator or Accelerator(cpu=True))


@pytest.mark.parametrize("training", [True, False])
def test_neither_the_mode_nor_the_random_state_nor_a_gradient_shows_it(training):
    model = tiny_model("gpt2", resid_pdrop=0.5, max_position_embeddings=300).train(training)
    state = torch.get_rng_state()
    evaluator = evaluator_of(model, LINES)
    first, second = evaluator.facts(), evaluator.facts()
    assert first == second and set(first) == {"lines/acc", "lines/acc_norm", "lines/chance"}, "dropout is off"
    assert model.training == training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_weights_of_the_moment_are_asked():
    model = tiny_model("llama", max_position_embeddings=300)
    evaluator = evaluator_of(model, LINES)
    (before,) = evaluator.decisions()
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    assert evaluator.decisions()[0][0].log_likelihoods != before[0].log_likelihoods


def test_progress_is_heard_task_by_task():
    heard = []
    words = Task("words", (item("here", {"context": "a", "continuation": "b"}),))
    evaluator_of(tiny_model("llama", max_position_embeddings=300), LINES, words).results(
        lambda task, fraction: heard.append((task, fraction))
    )
    assert heard[-1] == ("words", 1.0)
    assert ("lines", 1.0) in heard


def test_the_precision_is_that_of_the_run():
    """Under bf16 the numbers are those of bf16, in every thread, and summed in more."""
    model = tiny_model("llama", max_position_embeddings=300)
    plain = evaluator_of(model, LINES).decisions()
    forget_accelerator()
    try:
        low = evaluator_of(model, LINES, accelerator=Accelerator(cpu=True, mixed_precision="bf16")).decisions()
    finally:
        forget_accelerator()
    sums = [decision.log_likelihoods for (decisions,) in (plain, low) for decision in decisions]
    assert sums[:4] != sums[4:]
    for exact, rounded in zip(sums[:4], sums[4:], strict=True):
        assert rounded == pytest.approx(exact, rel=2e-2)


def test_tasks_without_a_tokenizer_are_refused_and_no_tasks_need_none():
    model = tiny_model("llama")
    with refuses(ConfigError, "data.tokenizer"):
        evaluator_of(model, LINES, tokenizer=None)
    assert evaluator_of(model, tokenizer=None).facts() == {}


def test_an_item_that_does_not_fit_the_model_is_refused_before_anything_is_asked():
    with refuses(DataError, 32, "positions"):
        evaluator_of(
            tiny_model("gpt2", max_position_embeddings=32),
            Task("long", (item("here", {"context": "a", "continuation": "b" * 40}),)),
        )
