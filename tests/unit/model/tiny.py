"""Models of a few thousand weights, for tests that only need a real one."""

from typing import Any

from transformers import PretrainedConfig, PreTrainedModel

from trainer.model.build import build_model
from trainer.model.resolve import resolve

SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {
        "model_type": "gpt2",
        "n_layer": 2,
        "n_embd": 32,
        "n_head": 4,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
    "gpt2-untied": {
        "model_type": "gpt2",
        "n_layer": 2,
        "n_embd": 32,
        "n_head": 4,
        "tie_word_embeddings": False,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
    "llama": {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "tie_word_embeddings": False,
    },
    "llama-tied": {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "tie_word_embeddings": True,
    },
}


def tiny_config(shape: str, vocab_size: int = 257, **fields: Any) -> PretrainedConfig:
    return resolve(None, SHAPES[shape] | fields, vocab_size=vocab_size, sequence_length=32, eot_id=vocab_size - 1)


def tiny_model(shape: str, vocab_size: int = 257, seed: int = 1, **fields: Any) -> PreTrainedModel:
    return build_model(tiny_config(shape, vocab_size, **fields), vocab_size=vocab_size, seed=seed, device="cpu")
