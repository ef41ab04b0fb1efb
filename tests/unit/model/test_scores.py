"""Scores of tokens agree with the loss, whatever the family, and padding ids have no part in them."""

import pytest
import torch

from tests.unit.model.tiny import SHAPES, tiny_model
from trainer.model.after_head import NOTHING
from trainer.model.build import build_model
from trainer.model.resolve import resolve
from trainer.model.scores import token_scores

TOKENS = torch.randint(257, (3, 13), generator=torch.Generator().manual_seed(0))


def soft_capped():
    """A family that changes its logits after the head."""
    fields = {
        "model_type": "gemma2",
        "num_hidden_layers": 1,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "intermediate_size": 48,
        "final_logit_softcapping": 0.5,
    }
    config = resolve(None, fields, vocab_size=257, sequence_length=16, eot_id=256)
    return build_model(config, vocab_size=257, seed=1, device="cpu")


@pytest.fixture(params=[*SHAPES, "soft-capped", "plain"])
def model(request, monkeypatch):
    if request.param == "plain":  # whose logits come about in a way that is not known
        monkeypatch.setattr("trainer.model.build.candidates", lambda config: [NOTHING])
    model = soft_capped() if request.param in ("soft-capped", "plain") else tiny_model(request.param)
    assert bool(model.head_reason) == (request.param == "plain")
    return model.eval()


def test_the_scores_of_all_positions_add_up_to_the_loss(model):
    inputs, labels = TOKENS[:, :-1].contiguous(), TOKENS[:, 1:].contiguous()
    scores, _ = token_scores(model, inputs, torch.arange(inputs.numel()), labels.flatten())
    with torch.no_grad():
        loss, count = model(inputs, labels=labels, reduction="sum").tolist()
    assert count == scores.numel()
    assert -float(scores.double().sum()) == pytest.approx(loss, rel=1e-6)
    assert scores.dtype == torch.float32
    assert not scores.requires_grad


def test_some_positions_have_the_scores_they_have_among_all(model):
    inputs, labels = TOKENS[:, :-1].contiguous(), TOKENS[:, 1:].flatten()
    every = token_scores(model, inputs, torch.arange(inputs.numel()), labels)[0]
    some = torch.tensor([3, 11, 30])
    torch.testing.assert_close(token_scores(model, inputs, some, labels[some])[0], every[some])


def test_the_likeliest_is_a_real_id_even_where_padding_has_a_larger_logit():
    model = tiny_model("llama").eval()
    with torch.no_grad():
        model.lm_head.weight[257:] = model.lm_head.weight[:63] * 100
        logits = model(TOKENS[:, :-1]).logits.flatten(0, 1)
    assert (logits.argmax(-1) >= 257).any(), "the test wants padding to be likely"
    positions = torch.arange(logits.shape[0])
    likeliest = logits[:, :257].argmax(-1)
    scores, is_likeliest = token_scores(model, TOKENS[:, :-1], positions, likeliest)
    assert is_likeliest.all()
    torch.testing.assert_close(scores, logits[:, :257].log_softmax(-1).amax(-1))


def test_of_equally_likely_tokens_the_lowest_id_is_the_likeliest():
    model = tiny_model("llama").eval()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    _, is_likeliest = token_scores(model, TOKENS[:1, :2], torch.tensor([0, 1]), torch.tensor([0, 1]))
    assert is_likeliest.tolist() == [True, False]


def test_under_bf16_the_scores_are_those_of_the_bf16_loss():
    model = tiny_model("llama-tied").eval()
    inputs, labels = TOKENS[:, :-1].contiguous(), TOKENS[:, 1:].contiguous()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        loss = float(model(inputs, labels=labels, reduction="sum")[0])
        scores, _ = token_scores(model, inputs, torch.arange(inputs.numel()), labels.flatten())
    assert scores.dtype == torch.float32
    assert -float(scores.double().sum()) == pytest.approx(loss, rel=1e-6)
