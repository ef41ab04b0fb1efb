import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from trainer.metrics.layer_groups import group_order, layer_groups, short_names

FAMILIES = {
    "gpt2": {"n_embd": 8, "n_layer": 2, "n_head": 2},
    "llama": {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2},
    "gpt_neox": {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2},
    "opt": {"hidden_size": 8, "word_embed_proj_dim": 8, "ffn_dim": 8, "num_hidden_layers": 2, "num_attention_heads": 2},
    "bloom": {"hidden_size": 8, "n_layer": 2, "n_head": 2},
    "qwen2_moe": {
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "num_experts": 3,
        "intermediate_size": 8,
        "moe_intermediate_size": 8,
        "shared_expert_intermediate_size": 8,
    },
    "mamba": {"hidden_size": 8, "num_hidden_layers": 2, "state_size": 4},
}


def names_of(family, tied):
    config = AutoConfig.for_model(
        family, vocab_size=11, tie_word_embeddings=tied, pad_token_id=None, **FAMILIES[family]
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    return [name for name, _ in model.named_parameters()]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_of_a_family_is_in_its_part_of_the_model(family):
    names = names_of(family, tied=False)
    groups = dict(zip(names, layer_groups(names), strict=True))
    assert group_order(groups.values()) == ["embeddings", "block_00", "block_01", "final_norm", "head"]
    assert all(
        (".0." in name) == (group == "block_00") for name, group in groups.items() if ".1.mlp.experts" not in name
    )


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_tied_head_is_in_the_group_of_the_embeddings(family):
    assert group_order(layer_groups(names_of(family, tied=True))) == [
        "embeddings",
        "block_00",
        "block_01",
        "final_norm",
    ]


def test_the_names_of_gpt2_and_llama_by_hand():
    assert layer_groups(
        [
            "transformer.wte.weight",
            "transformer.wpe.weight",
            "transformer.h.3.ln_1.bias",
            "transformer.ln_f.weight",
            "lm_head.weight",
        ]
    ) == ["embeddings", "embeddings", "block_03", "final_norm", "head"]
    assert layer_groups(["model.embed_tokens.weight", "model.layers.11.mlp.up_proj.weight", "model.norm.weight"]) == [
        "embeddings",
        "block_11",
        "final_norm",
    ]


def test_a_compiled_or_wrapped_model_has_the_same_groups():
    assert layer_groups(["module._orig_mod.model.layers.2.mlp.weight", "module.lm_head.bias"]) == ["block_02", "head"]


def test_numbers_of_blocks_have_as_many_digits_as_sort_them():
    groups = layer_groups([f"h.{number}.weight" for number in (7, 64, 120)])
    assert groups == ["block_007", "block_064", "block_120"] == sorted(groups) == group_order(reversed(groups))


def test_a_model_of_an_unknown_kind_is_grouped_and_nothing_is_left_out():
    names = ["stem.weight", "0.weight", "2.bias", "embeddings.0.weight", "gate"]
    assert layer_groups(names) == ["other", "block_00", "block_02", "embeddings", "other"]
    assert layer_groups([]) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_short_names_are_of_their_own_and_lack_what_all_have(family):
    names = names_of(family, tied=False)
    short = short_names(names)
    assert len(set(short)) == len(names)
    assert all(full.removesuffix(".weight").endswith(name) for full, name in zip(names, short, strict=True))
    assert not any(
        name.startswith(("model.", "transformer.", "gpt_neox.", "backbone.")) or name.endswith(".weight")
        for name in short
    )


def test_short_names_by_hand():
    names = [
        "model.embed_tokens.weight",
        "model.layers.11.mlp.up_proj.weight",
        "model.layers.11.mlp.up_proj.bias",
        "lm_head.weight",
    ]
    assert short_names(names) == ["embed_tokens", "layers.11.mlp.up_proj", "layers.11.mlp.up_proj.bias", "lm_head"]
    assert short_names(["module.model.h.0.weight", "module.model.h.1.weight"]) == ["h.0", "h.1"]
    assert short_names(["0.weight", "2.bias", "gate"]) == ["0", "2.bias", "gate"]
    assert short_names([]) == []


def test_names_that_would_be_one_stay_whole():
    assert short_names(["model.h.0.weight", "model.norm.weight", "norm.weight"]) == [
        "h.0",
        "model.norm.weight",
        "norm.weight",
    ]
