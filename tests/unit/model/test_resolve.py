"""Presets and inline configs become transformers configs, and mistakes become sentences."""

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from tests.messages import says
from trainer.errors import ConfigError
from trainer.model.presets import PRESETS
from trainer.model.resolve import resolve
from trainer.model.shapes import padded_vocabulary

SIZES = {
    "gpt2-124m": 124e6,
    "gpt2-350m": 355e6,
    "gpt2-774m": 774e6,
    "gpt2-1.5b": 1558e6,
    "llama-124m": 124e6,
    "llama-350m": 360e6,
    "llama-1b": 1.08e9,
    "llama-7b": 6.9e9,
    "llama-shakespeare": 11.4e6,
}


def resolved(preset=None, **overrides):
    return resolve(preset, overrides, vocab_size=50257, sequence_length=1024, eot_id=50256)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_the_size_its_name_says(preset):
    config = resolved(preset)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert model.num_parameters() == pytest.approx(SIZES[preset], rel=0.01)
    assert config.vocab_size == 50304
    assert config.eos_token_id == config.bos_token_id == 50256
    dropouts = [getattr(config, name, 0.0) for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout")]
    assert dropouts == [0.0] * 4


@pytest.mark.parametrize(("vocab_size", "padded"), [(1, 64), (64, 64), (257, 320), (4096, 4096), (50257, 50304)])
def test_the_vocabulary_is_padded_to_a_multiple_of_64(vocab_size, padded):
    assert padded_vocabulary(vocab_size) == padded


def test_an_inline_config_is_a_model_of_its_own():
    config = resolved(model_type="llama", hidden_size=96, num_attention_heads=6, num_hidden_layers=2)
    assert isinstance(config, LlamaConfig)
    assert config.hidden_size == 96


def test_overrides_win_over_the_preset_also_under_another_name_of_the_field():
    assert resolved("llama-124m", num_hidden_layers=3).num_hidden_layers == 3
    config = resolved("gpt2-124m", hidden_size=96, num_attention_heads=6)
    assert isinstance(config, GPT2Config)
    assert (config.n_embd, config.n_head) == (96, 6)


def test_positions_reach_the_sequence_length():
    longer = resolve("gpt2-124m", {}, vocab_size=50257, sequence_length=2048)
    assert longer.n_positions == 2048
    assert resolve("llama-7b", {}, vocab_size=50257, sequence_length=512).max_position_embeddings == 4096


@pytest.mark.parametrize(
    ("wanted", "base", "kind"),
    [
        ({}, 500000.0, "default"),
        ({"rope_theta": 20000.0}, 20000.0, "default"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, 500000.0, "linear"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, 500000.0, "linear"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_theta": 20000.0}, 20000.0, "linear"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}, 7.0, "default"),
    ],
)
def test_what_a_recipe_says_of_positions_counts_and_the_rest_stays_the_presets(wanted, base, kind):
    rope = resolved("llama-1b", **wanted).rope_parameters
    assert (rope["rope_theta"], rope["rope_type"]) == (base, kind)
    assert "factor" not in rope or rope["factor"] == 2.0


def test_rope_theta_may_be_given_by_its_old_name():
    assert resolved("llama-124m", rope_theta=5000.0).rope_parameters["rope_theta"] == 5000.0
    assert resolved("llama-1b").rope_parameters["rope_theta"] == 500000.0


@pytest.mark.parametrize(
    ("preset", "overrides", "words"),
    [
        ("gpt2-124", {}, ["'gpt2-124m'"]),
        (None, {}, ["model.preset"]),
        (None, {"model_type": "lama"}, ["'llama'"]),
        (None, {"model_type": "zzzzqqqq"}, ["'zzzzqqqq'", "gpt2"]),
        (None, {"model_type": "vit"}, ["causal language model"]),
        (None, {"model_type": "bart"}, ["encoder", "decoder"]),
        ("llama-124m", {"model_type": "gpt2"}, ["model.config.model_type", "gpt2"]),
        ("llama-124m", {"num_hiden_layers": 3}, ["'num_hidden_layers'"]),
        ("llama-124m", {"vocab_size": 3}, ["data.tokenizer"]),
        ("llama-124m", {"dtype": "bfloat16"}, ["cluster file"]),
        ("llama-124m", {"hidden_size": 770}, ["model.config", "770", "multiple"]),
        ("gpt2-124m", {"n_embd": 770}, ["model.config", 770, "768, 780"]),
        ("llama-124m", {"num_key_value_heads": 5}, ["num_key_value_heads", 5]),
        ("llama-124m", {"hidden_size": "wide"}, ["hidden_size", "wide"]),
        ("llama-124m", {"max_position_embeddings": 8}, ["sequence_length", 1024]),
        (None, {"model_type": "qwen3_moe", "num_expert": 4}, ["'num_experts'"]),
    ],
)
def test_a_mistake_is_named_with_what_to_do(preset, overrides, words):
    with pytest.raises(ConfigError) as caught:
        resolved(preset, **overrides)
    says(caught.value, *words)


def test_all_mistakes_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        resolved("llama-124m", num_hiden_layers=3, vocab_size=5)
    assert len(caught.value.problems) == 2


def test_a_field_that_is_also_the_alias_of_another_is_itself():
    assert resolved(model_type="qwen3_moe", num_experts=4).num_experts == 4


def test_a_field_that_only_the_code_of_the_model_reads_may_be_set():
    config = resolved(model_type="qwen3_moe", head_dim=16, hidden_size=32, num_attention_heads=4, num_hidden_layers=1)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert model.model.layers[0].self_attn.q_proj.weight.shape == (64, 32)


@pytest.mark.parametrize(("model_type", "vocab_size"), [("phi3", 4096), ("smollm3", 50257)])
def test_a_padding_id_of_the_familys_own_tokenizer_is_left_out_where_it_is_beyond_the_vocabulary(
    model_type, vocab_size
):
    def padding(size):
        return resolve(None, {"model_type": model_type}, vocab_size=size, sequence_length=64).pad_token_id

    assert padding(vocab_size) is None
    assert padding(200_000) is not None
