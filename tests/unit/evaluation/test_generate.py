"""Samples: seeded, within the vocabulary and the positions, and without a trace in the random state."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

from tests.unit.model.tiny import tiny_model
from trainer.errors import ConfigError
from trainer.evaluation.generate import generate

PROMPT = [5, 6, 7]


@pytest.fixture(scope="module", params=["gpt2", "llama-tied"])
def model(request):
    return tiny_model(request.param, max_position_embeddings=40)


def sample(model, prompt=PROMPT, **settings):
    return generate(model, prompt, vocab_size=257, **({"max_new_tokens": 12} | settings))


def test_a_seed_gives_the_same_sample_and_leaves_the_random_state_alone(model):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = sample(model, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert sample(model, seed=3) == first != sample(model, seed=4)
    assert 0 < len(first) <= 12 and model.training


def test_temperature_zero_is_the_likeliest_token_each_time(model):
    tokens = list(PROMPT)
    model.eval()
    with torch.no_grad():
        for _ in range(6):
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1, :257].argmax()))
    model.train()
    assert sample(model, temperature=0.0, max_new_tokens=6) == tokens[3:]


def test_padding_ids_never_come_even_when_they_are_the_likeliest():
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight[257:] = model.lm_head.weight[:257].norm() * 10
        model.lm_head.weight[257:] *= torch.sign(torch.randn(63, 32, generator=torch.Generator().manual_seed(0)))
    hidden_ids = model.eval()(torch.tensor([PROMPT])).logits.argmax(-1)
    assert (hidden_ids >= 257).any(), "the test wants padding to be likely"
    for temperature in (0.0, 1.0, 5.0):
        assert max(sample(model, temperature=temperature)) < 257


def test_top_k_of_one_is_greedy_and_top_p_of_nearly_nothing_too(model):
    greedy = sample(model, temperature=0.0)
    assert sample(model, top_k=1, seed=9) == greedy == sample(model, top_p=1e-6, seed=9)


def test_the_sample_ends_with_the_models_positions(model):
    prompt = [i % 250 for i in range(36)]
    assert len(sample(model, prompt, max_new_tokens=100)) <= 4
    with pytest.raises(ConfigError, match="40 tokens, and the model has 40 positions"):
        sample(model, [1] * 40)


def test_nothing_asked_for_is_nothing(model):
    assert sample(model, max_new_tokens=0) == []


def test_a_prompt_outside_the_vocabulary_or_empty_is_a_programming_error(model):
    for prompt in ([], [257], [-1]):
        with pytest.raises(AssertionError):
            sample(model, prompt)


def test_a_model_that_accelerate_prepared_for_bf16_generates():
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    try:
        model = Accelerator(cpu=True, mixed_precision="bf16").prepare_model(tiny_model("llama"))
        assert sample(model) and model.training
    finally:
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
