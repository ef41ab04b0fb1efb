"""The models by name: the one place to add one. Imports nothing heavy, so that a wrong name is told before anything is launched.

A model is one entry in PRESETS: the fields of the transformers config class that `model_type` names. What is not written is that
class's default. Vocabulary, positions and the end-of-text id come from the data and are set by `resolve`.
"""

from typing import Any

from trainer.errors import ConfigError
from trainer.text import did_you_mean


def _gpt2(n_layer: int, n_embd: int, n_head: int) -> dict[str, Any]:
    sizes = {"n_layer": n_layer, "n_embd": n_embd, "n_head": n_head}
    return {"model_type": "gpt2", **sizes, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def _llama(layers: int, hidden: int, heads: int, kv_heads: int, intermediate: int, **fields: Any) -> dict[str, Any]:
    sizes = {"num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": intermediate}
    attention = {"num_attention_heads": heads, "num_key_value_heads": kv_heads}
    return {"model_type": "llama", **sizes, **attention, "tie_word_embeddings": True, **fields}


PRESETS: dict[str, dict[str, Any]] = {
    # GPT-2's four sizes, without dropout: each token is seen about once.
    "gpt2-124m": _gpt2(12, 768, 12),
    "gpt2-350m": _gpt2(24, 1024, 16),
    "gpt2-774m": _gpt2(36, 1280, 20),
    "gpt2-1.5b": _gpt2(48, 1600, 25),
    # The first two match GPT-2's sizes; the other two have the shapes of Llama 3.2 1B and of Llama 2 7B.
    "llama-124m": _llama(12, 768, 12, 12, 2048),
    "llama-350m": _llama(24, 1024, 16, 16, 2816),
    "llama-1b": _llama(16, 2048, 32, 8, 8192, rope_parameters={"rope_type": "default", "rope_theta": 500000.0}),
    "llama-7b": _llama(32, 4096, 32, 32, 11008, tie_word_embeddings=False, max_position_embeddings=4096),
    # For a laptop: learns the shape of a play in three minutes on two cores.
    "llama-shakespeare": _llama(4, 192, 6, 6, 512),
}


def preset_fields(preset: str) -> dict[str, Any]:
    """The fields of a preset; ConfigError with the nearest name when there is none of this name."""
    if preset not in PRESETS:
        raise ConfigError(f"model.preset {preset!r} is not a preset; {did_you_mean(preset, PRESETS)}")
    return dict(PRESETS[preset])
