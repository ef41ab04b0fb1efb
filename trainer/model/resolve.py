"""How a recipe's `model` section becomes a transformers config, and its mistakes become sentences."""

import dataclasses
import inspect
import logging
import re
import sys
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from trainer.errors import ConfigError
from trainer.model.presets import preset_fields
from trainer.model.rope import with_rope
from trainer.model.shapes import padded_vocabulary
from trainer.text import did_you_mean

logger = logging.getLogger(__name__)

CONFIG_ERRORS = (StrictDataclassError, ValueError, TypeError)
"""What a config class raises for a value that it does not take."""

POSITION_FIELDS = ("max_position_embeddings", "max_seq_len", "n_positions", "max_seq_length")


def resolve(
    preset: str | None, overrides: dict[str, Any], *, vocab_size: int, sequence_length: int, eot_id: int | None = None
) -> PretrainedConfig:
    """The transformers config that a preset, or `overrides` with a `model_type`, describes.

    overrides   fields of the config class, over the preset's; the class's own aliases (`hidden_size` for GPT-2) work
    vocab_size  ids of the tokenizer; the config gets `padded_vocabulary` of it
    eot_id      begins and ends documents; None: the config has no such ids
    raises      ConfigError with every problem found
    """
    fields = {} if preset is None else preset_fields(preset)
    model_type = overrides.get("model_type", fields.get("model_type"))
    config_class = _config_class(model_type)
    if preset and model_type != fields["model_type"]:
        raise ConfigError(
            f"model.config.model_type {model_type!r} contradicts model.preset {preset!r}, which is a "
            f"{fields['model_type']!r}; leave out one of the two"
        )
    # A class may declare a field under the name that is its alias (Qwen3-MoE's num_experts): it is then the field.
    own = all_fields(config_class)
    overrides = {
        key if key in own else config_class.attribute_map.get(key, key): value for key, value in overrides.items()
    }
    check_fields(overrides, config_class, sequence_length)
    fields = with_rope(fields | overrides, overrides, fields.get("rope_parameters"))
    fields.pop("model_type")
    fields = (
        {"bos_token_id": eot_id, "eos_token_id": eot_id} | _no_foreign_padding(own, config_class, vocab_size) | fields
    )
    try:
        config = config_class(**fields, vocab_size=padded_vocabulary(vocab_size))
    except CONFIG_ERRORS as error:
        cause = _first_cause(error)
        raise ConfigError(f"model.config is refused by {config_class.__name__}: {cause} Fix these fields.") from error
    if config.is_encoder_decoder:
        raise ConfigError(f"model.config.model_type {model_type!r} is an encoder with a decoder; take e.g. llama")
    _set_positions(config, sequence_length)
    _check_heads(config)
    return config


def _no_foreign_padding(own: set[str], config_class: type[PretrainedConfig], vocab_size: int) -> dict[str, None]:
    """No padding id where the class's own is one of its family's tokenizer (Phi-3, SmolLM3) and beyond this vocabulary."""
    theirs = getattr(config_class, "pad_token_id", None)
    is_beyond = isinstance(theirs, int) and theirs >= padded_vocabulary(vocab_size)
    return {"pad_token_id": None} if "pad_token_id" in own and is_beyond else {}


def _config_class(model_type: str | None) -> type[PretrainedConfig]:
    if model_type is None:
        raise ConfigError("no model: set model.preset (e.g. llama-124m) or model.config.model_type (e.g. llama)")
    if model_type not in CONFIG_MAPPING:
        raise ConfigError(f"model.config.model_type {model_type!r} is unknown to transformers; {_suggest(model_type)}")
    config_class = CONFIG_MAPPING[model_type]
    if config_class not in MODEL_FOR_CAUSAL_LM_MAPPING or "vocab_size" not in all_fields(config_class):
        hint = _suggest(model_type)
        raise ConfigError(f"model.config.model_type {model_type!r} is not a causal language model of text; {hint}")
    return config_class


def _suggest(model_type: str) -> str:
    """The nearest causal model type, or some well-known ones: the list of all has two hundred names."""
    # By name: asking the mappings for their classes would import every model of transformers, which takes seconds.
    hint = did_you_mean(model_type, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    return hint if hint.startswith("did you mean") else "take e.g. gpt2, llama, qwen3, mistral, olmo2"


def all_fields(config_class: type[PretrainedConfig]) -> set[str]:
    return {field.name for field in dataclasses.fields(config_class) if not field.name.startswith("_")}


def check_fields(overrides: dict[str, Any], config_class: type[PretrainedConfig], sequence_length: int) -> None:
    """Every key of the overrides is a field of this class that a recipe may set; the class itself would take any."""
    generic = all_fields(PretrainedConfig) | {"vocab_size", "use_cache"}
    own = all_fields(config_class) - generic
    legacy = {"rope_theta", "rope_scaling"} if "rope_parameters" in own else set()
    allowed = own | set(config_class.attribute_map) | legacy | {"tie_word_embeddings", "model_type"}
    problems = []
    for key, value in overrides.items():
        if key == "vocab_size":
            problems.append("model.config.vocab_size comes from the data; set data.tokenizer or data.vocab_size")
        elif key == "dtype":
            problems.append("model.config.dtype is not a setting: precision is mixed_precision in the cluster file")
        elif key not in allowed and not _is_read(key, config_class):
            hint = did_you_mean(key, allowed)
            problems.append(f"model.config.{key} is not a field of {config_class.__name__} that a recipe sets; {hint}")
        elif key in POSITION_FIELDS and isinstance(value, int) and value < sequence_length:
            problems.append(
                f"model.config.{key} {value} is less than sequence_length {sequence_length}; "
                "raise the one, lower the other, or leave the field out"
            )
    if problems:
        raise ConfigError(*problems)


def _is_read(key: str, config_class: type[PretrainedConfig]) -> bool:
    """Whether the model's code reads a field that its config class does not declare, as Qwen3-MoE's reads head_dim."""
    try:
        source = inspect.getsource(sys.modules[MODEL_FOR_CAUSAL_LM_MAPPING[config_class].__module__])
    except (OSError, TypeError):  # a person's own class may have none
        return False
    return f'getattr(config, "{key}"' in source


def _set_positions(config: PretrainedConfig, sequence_length: int) -> None:
    """Raises the number of positions to the sequence length where the class limits it and has fewer."""
    for field in POSITION_FIELDS:
        limit = getattr(config, field, None)
        if isinstance(limit, int):
            if limit < sequence_length:
                logger.info("model: %s raised from %d to the sequence length %d", field, limit, sequence_length)
                setattr(config, field, sequence_length)
            return


def _check_heads(config: PretrainedConfig) -> None:
    hidden, heads = getattr(config, "hidden_size", None), getattr(config, "num_attention_heads", None)
    kv_heads, head_dim = getattr(config, "num_key_value_heads", None), getattr(config, "head_dim", None)
    problems = []
    if isinstance(hidden, int) and isinstance(heads, int) and not head_dim and hidden % heads:
        near = [str(n) for n in (hidden // heads * heads, (hidden // heads + 1) * heads) if n > 0]
        problems.append(f"hidden_size {hidden} is not a multiple of {heads} heads; nearest: {', '.join(near)}")
    if isinstance(heads, int) and isinstance(kv_heads, int) and heads % kv_heads:
        problems.append(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}; set both")
    if problems:
        raise ConfigError(*(f"model.config: {problem}" for problem in problems))


def _first_cause(error: BaseException) -> str:
    """The library's own words for what it refused, on one line."""
    cause = re.sub(r"^Class validation error for validator '\w+': (\w+: )?", "", " ".join(str(error).split()))
    return cause if cause.endswith(".") else f"{cause}."
