"""A model of a few thousand weights of each family that people pretrain: what of its config matters, small."""

from typing import Any

import pytest
from transformers import PretrainedConfig, PreTrainedModel

from trainer.model.build import build_model
from trainer.model.resolve import resolve

VOCABULARY = 128
"""A multiple of 64, so that no row is padding and transformers' own loss is over the same ids."""

_WIDTH = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4}
_GATED = _WIDTH | {"num_key_value_heads": 2, "intermediate_size": 48}
_EXPERTS = _GATED | {"num_experts_per_tok": 2, "router_aux_loss_coef": 0.05}

FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_layer": 2, "n_embd": 32, "n_head": 4},  # with its dropout of 0.1
    "llama": _GATED,
    "qwen2": _GATED,
    "qwen3": _GATED | {"head_dim": 16},
    "gemma2": _GATED
    | {"head_dim": 16, "final_logit_softcapping": 0.5, "attn_logit_softcapping": 1.0, "sliding_window": 8},
    "gemma3_text": _GATED
    | {"head_dim": 16, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8},
    "mistral": _GATED | {"sliding_window": 8},
    "smollm3": _GATED | {"no_rope_layers": [1, 0]},
    "olmo2": _GATED,
    "phi3": _GATED,
    "gpt_neox": _WIDTH | {"intermediate_size": 48},
    "opt": _WIDTH | {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "falcon": _WIDTH,
    "mamba": {"num_hidden_layers": 2, "hidden_size": 32, "state_size": 8},
    "mixtral": _EXPERTS | {"num_local_experts": 4},
    "qwen3_moe": _EXPERTS | {"num_experts": 4, "moe_intermediate_size": 24, "head_dim": 16, "mlp_only_layers": [0]},
}
"""Fields of the transformers config by `model_type`."""

FAST = ("gemma2", "smollm3", "mamba", "qwen3_moe")
"""Those that differ most from GPT-2 and Llama, which other tests train all the time."""

EACH = [pytest.param(name, marks=() if name in FAST else pytest.mark.long) for name in FAMILIES]


def family_config(name: str, **fields: Any) -> PretrainedConfig:
    """As a recipe's `model.config` makes it."""
    fields = {"model_type": name, **FAMILIES[name], **fields}
    return resolve(None, fields, vocab_size=VOCABULARY, sequence_length=32, eot_id=VOCABULARY - 1)


def family_model(name: str, seed: int = 1, **fields: Any) -> PreTrainedModel:
    return build_model(family_config(name, **fields), vocab_size=VOCABULARY, seed=seed, device="cpu")
