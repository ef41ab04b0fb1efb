"""Arithmetic per token, by hand and by function."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.messages import says
from tests.unit.model.families import family_model
from tests.unit.model.tiny import tiny_model
from trainer.config.groups import ParameterGroup
from trainer.gpus import peak_flops
from trainer.model.build import build_model, build_shapes
from trainer.model.flops import flops_per_token, parameter_counts, spared_flops_per_token
from trainer.model.resolve import resolve
from trainer.optim.rules import freeze


def test_a_llama_counted_by_hand():
    # A block: q and o 32 x 32, k and v 16 x 32, three MLP matrices 32 x 48; the head 320 x 32.
    block = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48
    expected = 6 * (2 * block + 320 * 32) + 12 * 2 * 32 * 64
    for shape in ("llama", "llama-tied"):
        assert flops_per_token(tiny_model(shape), 64) == expected


def test_gpt2_124m_is_the_published_figure():
    config = resolve("gpt2-124m", {}, vocab_size=50257, sequence_length=1024)
    model = build_model(config, vocab_size=50257, seed=0, device="meta")
    assert flops_per_token(model, 1024) == pytest.approx(6 * 123.6e6 + 12 * 12 * 768 * 1024, rel=1e-3)


def test_of_experts_only_the_visited_share_counts():
    fields = {
        "model_type": "mixtral",
        "num_hidden_layers": 1,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 48,
        "num_experts_per_tok": 2,
    }
    few, many = (
        flops_per_token(build_shapes(None, fields | {"num_local_experts": n}, sequence_length=8), 8) for n in (4, 8)
    )
    assert many - few == 6 * 4 * 32  # the router's rows


LOWER = r"embed|wte|wpe|layers\.0|h\.0\."


@pytest.mark.parametrize(
    ("shape", "match"),
    [
        ("llama", "embed"),
        ("llama", r"layers\.0"),
        ("llama", LOWER),
        ("llama", "embed|layers"),
        ("llama", "embed|layers|norm"),
        ("llama", "mlp"),
        ("llama", "lm_head"),
        ("llama-tied", "embed"),
        ("gpt2", LOWER),
        ("gpt2", "mlp"),
        ("gpt2-untied", LOWER),
    ],
)
def test_what_freezing_spares_is_what_torch_counts_less(shape, match):
    def products_per_token(model):
        tokens = torch.arange(66).reshape(2, 33)
        with FlopCounterMode(display=False) as counted:
            model(tokens[:, :-1], labels=tokens[:, 1:].contiguous()).backward()
        return sum(n for name, n in counted.get_flop_counts()["Global"].items() if "mm" in str(name)) / 64

    whole, part = tiny_model(shape), tiny_model(shape)
    freeze(part, [ParameterGroup(match=match, freeze=True)])
    assert spared_flops_per_token(whole, 32) == 0
    assert products_per_token(whole) == flops_per_token(whole, 0)
    assert products_per_token(whole) - products_per_token(part) == spared_flops_per_token(part, 0)


def test_attention_of_blocks_below_all_that_is_trained_is_computed_forward_only():
    model = tiny_model("llama")
    freeze(model, [ParameterGroup(match=LOWER, freeze=True)])
    spared = spared_flops_per_token(model, 32) - spared_flops_per_token(model, 0)
    assert spared == 8 * 1 * 32 * 32  # one of two blocks, 4 heads of 8, 32 tokens


def test_tied_parameters_count_once():
    tied, untied = parameter_counts(tiny_model("llama-tied")), parameter_counts(tiny_model("llama"))
    assert untied.total - tied.total == 320 * 32
    assert tied.total - tied.non_embedding == untied.total - untied.non_embedding == 320 * 32


@pytest.mark.parametrize(
    ("name", "precision", "tera"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312),
        ("NVIDIA H100 80GB HBM3", "bf16", 989),
        ("NVIDIA H100 80GB HBM3", "fp8", 1979),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA H100 NVL", "fp8", 1671),
        ("NVIDIA H200", "bf16", 989),
        ("NVIDIA B200", "fp8", 4500),
        ("NVIDIA L40S", "bf16", 362),
        ("NVIDIA L4", "bf16", 121),
        ("NVIDIA A10", "bf16", 125),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
        ("NVIDIA GeForce RTX 3090", "no", 35.6),
        ("Tesla V100-SXM2-16GB", "fp16", 125),
        ("Tesla T4", "fp16", 65),
        ("NVIDIA A100-SXM4-80GB", "no", 19.5),
    ],
)
def test_known_gpus_have_their_data_sheet_peak(name, precision, tera):
    assert peak_flops(name, precision) == pytest.approx(tera * 1e12)


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("NVIDIA A10G", "bf16"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16"),
        ("NVIDIA GeForce RTX 4090 D", "bf16"),
        ("NVIDIA GeForce RTX 3090 Ti", "bf16"),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16"),
        ("Tesla V100-SXM2-16GB", "bf16"),
        ("NVIDIA A100-SXM4-80GB", "fp8"),
        ("cpu", "no"),
        ("", "no"),
    ],
)
def test_what_is_unknown_has_no_peak(name, precision):
    assert peak_flops(name, precision) is None


def test_of_experts_the_active_parameters_are_those_that_a_token_meets():
    counts = parameter_counts(family_model("mixtral"))
    # Two layers with four experts of three matrices 48 x 32, of which a token visits two.
    assert counts.total - counts.active == 2 * 2 * 3 * 48 * 32
    says(counts.words, "active")
    dense = parameter_counts(tiny_model("llama"))
    assert dense.active == dense.total
    assert "active" not in dense.words


def test_a_model_without_attention_has_no_scores():
    model = family_model("mamba")
    assert flops_per_token(model, 64) == flops_per_token(model, 1024) > 0


def test_of_mixed_layers_those_with_attention_have_scores():
    fields = {"model_type": "jamba", "num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 4}
    fields |= {"num_key_value_heads": 2, "intermediate_size": 48, "attn_layer_period": 4, "attn_layer_offset": 1}
    config = resolve(None, fields, vocab_size=64, sequence_length=8)
    model = build_model(config, vocab_size=64, seed=1, device="meta")
    assert flops_per_token(model, 9) - flops_per_token(model, 8) == 12 * 32
