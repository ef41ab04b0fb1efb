"""Models to begin from, as transformers writes them: a few thousand random weights of each family, with a tokenizer of bytes."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel

from trainer.data.tokenizer import END_OF_TEXT, load_tokenizer
from trainer.model.tokenizer_files import TokenizerFacts, save_tokenizer

VOCAB_SIZE = 257

_SHAPE = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4}
_GROUPED = {**_SHAPE, "num_key_value_heads": 2, "intermediate_size": 48}
_HEADS_OF_8 = {**_GROUPED, "head_dim": 8}

FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": 64},
    "llama": _GROUPED,
    "qwen2": _GROUPED,
    "qwen3": {**_HEADS_OF_8, "tie_word_embeddings": True},
    "gemma2": _HEADS_OF_8,
    "gemma3_text": _HEADS_OF_8,
    "mistral": _GROUPED,
    "smollm3": {**_GROUPED, "pad_token_id": 256},
    "olmo2": _GROUPED,
    "phi3": {**_GROUPED, "pad_token_id": 256},
    "gpt_neox": {**_SHAPE, "intermediate_size": 48},
    "opt": {**_SHAPE, "ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
    "falcon": _SHAPE,
    "mamba": {"num_hidden_layers": 2, "hidden_size": 32, "state_size": 4},
    "mixtral": {**_GROUPED, "num_local_experts": 4},
    "qwen3_moe": {**_HEADS_OF_8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
}
"""By model_type: fields of a config that make it small."""

FAST = ("gpt2", "qwen3", "gemma2", "mixtral")
"""Those that differ most: tables of positions and a tied head of its own layout; grouped heads; soft caps; one tensor an expert in the files."""

CHAT_TEMPLATE = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}\n"


def source_model(family: str, **fields: Any) -> PreTrainedModel:
    """A random model of a family, whose biases and norms are random too: nothing that is loaded is what a fresh model has."""
    ends = {"bos_token_id": 256, "eos_token_id": 256, "pad_token_id": None}
    config = CONFIG_MAPPING[family](**{"vocab_size": VOCAB_SIZE, **ends, **FAMILIES[family], **fields})
    with torch.random.fork_rng():
        torch.manual_seed(11)
        model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter), alpha=0.02)
    return model.eval()


def write_source(folder: Path, family: str = "llama", *, dtype: torch.dtype = torch.bfloat16, **fields: Any) -> Path:
    """A folder to begin from: a model of a family in a type, its tokenizer, a chat template and a generation config; returns the folder."""
    source_model(family, **fields).to(dtype).save_pretrained(folder)
    write_tokenizer(folder)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 256, "max_new_tokens": 7}))
    return folder


def write_tokenizer(folder: Path, name: str = "bytes") -> None:
    """The files of a tokenizer of this trainer."""
    own = load_tokenizer(name)
    facts = TokenizerFacts(
        ranks=own.ranks, pattern=own.pattern, eot_token=END_OF_TEXT, eot_id=own.eot_id, vocab_size=own.vocab_size
    )
    save_tokenizer(facts, folder, None)
