"""Samples: for each prompt the likeliest text and a drawn one, the same for the same weights, and without a trace in the run."""

from dataclasses import replace

import pytest
import torch
from tensorboard.plugin_util import markdown_to_safe_html

from tests.messages import refuses
from tests.unit.model.tiny import tiny_model
from trainer.config.schema import EvaluationConfig
from trainer.data.tokenizer import load_tokenizer
from trainer.errors import ConfigError
from trainer.evaluation.generate import Limits, Row, Sampling, generate
from trainer.evaluation.samples import (
    DRAWN,
    LIKELIEST,
    Sample,
    check_prompts,
    markdown,
    prompts_of,
    samples_due,
    take_samples,
)

TOKENIZER = load_tokenizer("bytes")
PROMPTS = ["Enter", "", "To be, or"]
LIMITS = Limits(max_new_tokens=10, sequence_length=32, vocab_size=257, eot_id=256)


def take(model, prompts=PROMPTS, **settings):
    seed = settings.pop("seed", 5)
    return take_samples(model, prompts, TOKENIZER, replace(LIMITS, **settings), seed=seed)


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama-tied")


def test_each_prompt_is_continued_by_the_likeliest_tokens_and_by_drawn_ones(model):
    samples = take(model)
    assert [(sample.prompt, sample.kind) for sample in samples] == [
        (prompt, kind) for prompt in PROMPTS for kind in (LIKELIEST, DRAWN)
    ]
    for sample in samples:
        sampling = Sampling(temperature=0.0) if sample.kind == LIKELIEST else Sampling(temperature=0.8, top_k=50)
        row = Row(prompt_ids=[256, *sample.prompt.encode()], sampling=sampling, seed=5)
        (written,) = generate(model, [row], LIMITS)
        assert sample.text == TOKENIZER.decode(written.tokens)
    assert len({sample.text for sample in samples}) > 3


def test_a_text_begins_with_bos_where_the_tokenizer_has_one(model):
    begun = take_samples(model, [""], replace(TOKENIZER, bos_id=7, begins_with_bos=True), LIMITS, seed=5)
    row = Row(prompt_ids=[7], sampling=Sampling(temperature=0.0), seed=5)
    assert begun[0].text == TOKENIZER.decode(generate(model, [row], LIMITS)[0].tokens) != take(model, [""])[0].text


def test_they_are_one_pass_of_the_model(model, monkeypatch):
    calls = []
    monkeypatch.setattr(
        model, "forward", lambda *args, plain=model.forward, **kwargs: calls.append(1) or plain(*args, **kwargs)
    )
    take(model, ["a", "b", "c"])
    assert len(calls) == 10


def test_the_same_weights_give_the_same_samples_and_the_run_sees_no_trace(model):
    torch.manual_seed(3)
    state, was_training = torch.get_rng_state(), model.training
    first = take(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training == was_training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    model.eval()
    torch.manual_seed(4)
    assert take(model) == first
    assert not model.training
    model.train()


def test_a_cpu_takes_them_on_one_thread_and_has_its_own_number_back(model, monkeypatch):
    before, during = torch.get_num_threads(), []
    monkeypatch.setattr(
        model,
        "forward",
        lambda *args, plain=model.forward, **kwargs: during.append(torch.get_num_threads()) or plain(*args, **kwargs),
    )
    torch.set_num_threads(3)
    try:
        take(model)
        assert set(during) == {1}
        assert torch.get_num_threads() == 3
        with pytest.raises(ConfigError):
            take(model, ["x" * 40])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_they_end_with_the_sequence_length(model):
    assert all(0 < len(sample.text) <= 16 for sample in take(model, ["x" * 14], max_new_tokens=100, sequence_length=31))


def test_weights_that_are_no_numbers_are_said_in_the_sample():
    model = tiny_model("llama")
    torch.nn.init.constant_(model.model.layers[0].mlp.down_proj.weight, float("nan"))
    assert {sample.text for sample in take(model)} == {" [the logits are not finite]"}


def test_a_prompt_that_leaves_no_position_is_refused_when_the_run_starts():
    check_prompts(["x" * 30], TOKENIZER, 32)
    with refuses(ConfigError, "evaluation.prompt", "evaluation.sample_prompts", "46 tokens", "sequence_length", 32):
        check_prompts(["", "x" * 45], TOKENIZER, 32)


def test_the_prompts_are_the_settings():
    assert prompts_of(EvaluationConfig()) == [""]
    assert prompts_of(EvaluationConfig(prompt="Enter")) == ["Enter"]
    assert prompts_of(EvaluationConfig(prompt="Enter", sample_prompts=["a", "b"])) == ["a", "b"]
    assert prompts_of(EvaluationConfig(prompt="Enter", sample_tokens=0)) == []


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, [4, 8, 10]),
        ({"samples_every_steps": 3}, [3, 6, 9, 10]),
        ({"samples_every_steps": 0}, [10]),
        ({"sample_tokens": 0, "samples_every_steps": 3}, []),
    ],
)
def test_samples_are_due_with_each_evaluation_or_every_so_many_steps_and_at_the_end(settings, steps):
    wanted = EvaluationConfig(**settings)
    assert [step for step in range(1, 11) if samples_due(wanted, step, 10, is_evaluated=step in (4, 8))] == steps


def test_markdown_shows_a_text_as_it_is():
    written = "# no heading\n\n* no list\n```\n<b>no tag</b>\x0b    and \u2028 lines"
    page = markdown_to_safe_html(
        markdown([Sample("Enter", LIKELIEST, written), Sample("", DRAWN, "\n\nx"), Sample("", DRAWN, "")])
    )
    assert page.count("<pre>") == 2
    assert page.count("<strong>") == 3
    assert "<h1>" not in page
    assert "<li>" not in page
    assert "<b>" not in page
    assert "Enter# no heading\n\n* no list\n```\n&lt;b&gt;" in page
    assert page.index("likeliest token") < page.index("Enter#") < page.index("0.8") < page.index("50 likeliest")
