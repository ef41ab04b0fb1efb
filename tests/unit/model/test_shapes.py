"""The shapes that are known from fields alone, held against the models that transformers builds."""

import pytest
from transformers import CONFIG_MAPPING

from tests.unit.model.families import FAMILIES
from trainer.model.build import build_model
from trainer.model.families import FAMILIES as KNOWN
from trainer.model.families import known_shapes
from trainer.model.flops import flops_per_token, parameter_counts, shapes_of_model
from trainer.model.presets import PRESETS
from trainer.model.resolve import resolve

VARIANTS = {
    **{f"preset {name}": fields for name, fields in PRESETS.items()},
    **{f"small {name}": {"model_type": name, **fields} for name, fields in FAMILIES.items()},
    "gpt2 untied": {
        "model_type": "gpt2",
        "n_layer": 1,
        "tie_word_embeddings": False,
        "n_inner": 99,
        "n_positions": 256,
    },
    "llama with biases": {"model_type": "llama", "num_hidden_layers": 1, "attention_bias": True, "mlp_bias": True},
    "llama of wide heads": {"model_type": "llama", "num_hidden_layers": 1, "head_dim": 160, "num_key_value_heads": 4},
    "opt projected": {"model_type": "opt", "word_embed_proj_dim": 512, "enable_bias": False, "num_hidden_layers": 1},
    "opt with norms behind": {"model_type": "opt", "do_layer_norm_before": False, "num_hidden_layers": 1},
    "falcon new": {"model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 1, "num_hidden_layers": 1},
    "falcon old": {
        "model_type": "falcon",
        "multi_query": False,
        "parallel_attn": False,
        "bias": True,
        "num_hidden_layers": 1,
    },
    "qwen3_moe sparse": {"model_type": "qwen3_moe", "decoder_sparse_step": 2, "num_hidden_layers": 4, "num_experts": 8},
    "mamba with biases": {"model_type": "mamba", "use_bias": True, "use_conv_bias": False, "time_step_rank": 7},
}


def built(fields, sequence_length=64):
    resolved = resolve(None, dict(fields), vocab_size=1000, sequence_length=sequence_length)
    return build_model(resolved, vocab_size=1000, seed=0, device="meta")


@pytest.mark.parametrize("name", VARIANTS)
def test_shapes_from_fields_are_those_of_the_model(name):
    fields, model = VARIANTS[name], built(VARIANTS[name])
    shapes = known_shapes(fields["model_type"], fields, vocab_rows=1024, sequence_length=64)
    assert {w.name: w.shape for w in shapes.weights} == {n: tuple(p.shape) for n, p in model.named_parameters()}
    assert shapes.counts == parameter_counts(model)
    assert shapes.flops_per_token(64) == flops_per_token(model, 64)


@pytest.mark.parametrize("name", [name for name in VARIANTS if name.startswith("small")])
def test_a_built_model_has_the_same_shapes(name):
    fields = VARIANTS[name]
    known = known_shapes(fields["model_type"], fields, vocab_rows=1024, sequence_length=64)
    found = shapes_of_model(built(fields))
    assert set(found.weights) == set(known.weights)
    for what in ("num_layers", "hidden", "attention_width", "query_width", "kept_by_norms", "scores_kept"):
        assert getattr(found, what) == getattr(known, what), what


@pytest.mark.parametrize("model_type", KNOWN)
def test_the_defaults_are_those_of_the_config_class(model_type):
    theirs = CONFIG_MAPPING[model_type]()
    for key, value in KNOWN[model_type].defaults.items():
        if value is not None and not (key == "intermediate_size" and value == 0):
            assert getattr(theirs, key) == value, key


def test_every_family_that_is_trained_in_tests_is_known():
    assert FAMILIES.keys() <= KNOWN.keys()


def test_positions_grow_with_the_sequence_length():
    for model_type in ("gpt2", "opt"):
        fields = VARIANTS[f"small {model_type}"]
        shapes = known_shapes(model_type, fields, vocab_rows=1024, sequence_length=4096)
        assert shapes.counts == parameter_counts(built(fields, 4096))


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("jamba", {}),
        ("gpt2", {"add_cross_attention": True}),
        ("llama", {"no_such_field": 1}),
        ("qwen3", {"layer_types": ["linear_attention"]}),
    ],
)
def test_what_is_not_known_is_not_guessed(model_type, fields):
    assert known_shapes(model_type, fields, vocab_rows=64, sequence_length=8) is None
