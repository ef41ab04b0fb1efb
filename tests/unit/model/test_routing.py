"""The auxiliary loss of routers, and the experts that they drew."""

import copy
import itertools
import logging

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter

from tests.messages import logged
from tests.unit.model.families import VOCABULARY, family_model
from tests.unit.model.tiny import tiny_model
from trainer.model.build import build_model, plain_loss_sums
from trainer.model.resolve import resolve
from trainer.model.routing import load_facts

WIDTH = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
LOCAL = {**WIDTH, "intermediate_size": 48, "num_local_experts": 4, "num_experts_per_tok": 2}
OWN = {**WIDTH, "intermediate_size": 48, "num_experts": 4, "num_experts_per_tok": 2}
OTHERS = {
    "gpt_oss": {**LOCAL, "head_dim": 8},
    "granitemoe": LOCAL,
    "jetmoe": {key: value for key, value in LOCAL.items() if key != "num_attention_heads"} | {"kv_channels": 8},
    "olmoe": OWN,
    "qwen2_moe": {**OWN, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24},
}
"""Further families with experts and an auxiliary loss."""


def batch(rows=2, columns=24, seed=3):
    tokens = torch.randint(VOCABULARY, (rows, columns + 1), generator=torch.Generator().manual_seed(seed))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


@pytest.fixture
def mixtral():
    return family_model("mixtral")


@pytest.mark.parametrize("family", OTHERS)
def test_every_family_with_experts_has_the_loss_of_transformers(family):
    config = resolve(None, {"model_type": family, **OTHERS[family]}, vocab_size=VOCABULARY, sequence_length=32)
    model = build_model(config, vocab_size=VOCABULARY, seed=1, device="cpu")
    plain = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation=config._attn_implementation)
    plain.load_state_dict(model.state_dict())
    tokens, _ = batch()
    labels = torch.cat([tokens[:, 1:], torch.full((2, 1), -100)], dim=1)
    expected = plain.train()(input_ids=tokens, labels=tokens, output_router_logits=True)
    model.routing.begin(is_counting=False)
    assert model(tokens, labels=labels).item() == pytest.approx(expected.loss.item(), rel=1e-6)
    assert model.routing.aux_loss.item() == pytest.approx(expected.aux_loss.item(), rel=1e-6)
    assert model.head_reason is None


def test_the_plain_way_has_it_too_and_it_is_the_models_own_where_ours_is_another(monkeypatch, caplog, mixtral):
    values = itertools.chain([7.0, 8.0], itertools.repeat(7.0))  # the probe finds that the model's own and ours differ
    balancing = "transformers.models.mixtral.modeling_mixtral.load_balancing_loss_func"
    monkeypatch.setattr(balancing, lambda *_: torch.tensor(next(values)))
    with caplog.at_level(logging.INFO):
        model = family_model("mixtral")
    logged(caplog, model.head_reason)
    assert "auxiliary loss" in model.head_reason
    inputs, labels = batch()
    loss_sum, count = plain_loss_sums(mixtral(inputs).logits, labels, VOCABULARY)
    model.routing.begin(is_counting=False)
    assert model(inputs, labels=labels).item() == pytest.approx((loss_sum / count).item() + 0.05 * 7, rel=1e-6)
    assert model.routing.aux_loss == 7


def test_evaluation_mode_and_sums_are_without_it_and_leave_no_trace(mixtral):
    inputs, labels = batch()
    total, count = mixtral(inputs, labels=labels, reduction="sum")
    mixtral.routing.begin(is_counting=True)
    with torch.no_grad():
        assert mixtral.eval()(inputs, labels=labels) == pytest.approx(float(total / count), rel=1e-6)
        mixtral(inputs)
    assert mixtral.routing.draws is None
    mixtral.train()(inputs, labels=labels)
    assert mixtral.routing.draws.shape == (2, 4)


def test_a_coefficient_of_zero_leaves_the_cross_entropy_and_the_value_is_still_told():
    model = family_model("mixtral", router_aux_loss_coef=0.0)
    inputs, labels = batch()
    total, count = model(inputs, labels=labels, reduction="sum")
    model.routing.begin(is_counting=False)
    assert model(inputs, labels=labels) == total / count
    assert model.routing.aux_loss > 1


def test_the_experts_that_are_counted_are_those_that_were_drawn(mixtral):
    drawn = []
    for module in mixtral.modules():
        if isinstance(module, MixtralTopKRouter):
            module.register_forward_hook(lambda module, args, output: drawn.append(output[2]))
    mixtral.routing.begin(is_counting=True)
    for seed in (3, 4):  # two micro-batches
        inputs, labels = batch(seed=seed)
        mixtral(inputs, labels=labels)
    expected = [torch.cat([drawn[layer], drawn[layer + 2]]).flatten().bincount(minlength=4) for layer in (0, 1)]
    assert mixtral.routing.draws.tolist() == torch.stack(expected).tolist()


def test_the_auxiliary_loss_of_a_step_is_the_mean_over_its_micro_batches(mixtral):
    inputs, labels = batch()
    values = []
    for rows in (slice(0, 1), slice(1, 2)):
        mixtral.routing.begin(is_counting=False)
        mixtral(inputs[rows], labels=labels[rows])
        values.append(mixtral.routing.aux_loss.item())
    mixtral.routing.begin(is_counting=False)
    for rows in (slice(0, 1), slice(1, 2)):
        mixtral(inputs[rows], labels=labels[rows])
    assert values[0] != values[1]
    assert mixtral.routing.aux_loss.item() == pytest.approx(sum(values) / 2)


def test_gradient_checkpointing_changes_no_gradient_and_counts_nobody_twice():
    inputs, labels = batch()
    found = []
    for checkpointing in (False, True):
        model = build_model(
            family_model("qwen3_moe").config,
            vocab_size=VOCABULARY,
            seed=1,
            device="cpu",
            gradient_checkpointing=checkpointing,
        )
        model.routing.begin(is_counting=True)
        model(inputs, labels=labels).backward()
        found.append([model.routing.draws, *(parameter.grad for parameter in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_model_without_experts_has_no_routing():
    assert tiny_model("llama").routing is None


def test_the_load_is_a_fraction_of_tokens_and_an_entropy():
    # Eight tokens that see two experts each: alike, two never, one always.
    draws = torch.tensor([[4.0, 4, 4, 4], [8, 8, 0, 0], [8, 4, 4, 0]])
    least, most, entropy = load_facts(draws, 2).T.tolist()
    assert least == [0.5, 0.0, 0.0]
    assert most == [0.5, 1.0, 1.0]
    assert entropy == pytest.approx([1.0, 0.5, 0.75])
