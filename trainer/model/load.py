"""The model of a checkpoint, from the files in its folder."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model as load_weights
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedModel

from trainer.errors import CheckpointError, ConfigError
from trainer.model.build import build_model


def config_of(fields: dict[str, Any]) -> PretrainedConfig:
    """The config of these fields, `model_type` among them. raises ConfigError when transformers does not know the type"""
    model_type, others = fields.get("model_type"), {key: value for key, value in fields.items() if key != "model_type"}
    if model_type not in CONFIG_MAPPING:
        raise ConfigError(f"the model has model_type {model_type!r}, which this transformers does not know; update it")
    return CONFIG_MAPPING[model_type](**others)


def load_model(fields: dict[str, Any], weights: Path, *, vocab_size: int, device: torch.device) -> PreTrainedModel:
    """The model that these weights were trained in, with our loss, in training mode.

    fields  of its transformers config, `model_type` among them
    raises  ConfigError when transformers does not know the type, CheckpointError when the weights are not this config's
    """
    model = build_model(config_of(fields), vocab_size=vocab_size, seed=0, device=device)
    load_weights_into(model, weights)
    return model


def load_weights_into(model: PreTrainedModel, weights: Path) -> None:
    """Loads the weights of a checkpoint, all of them by their names; CheckpointError when they are not this model's."""
    try:
        load_weights(model, weights)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"{weights} does not fit the config that stands beside it: {' '.join(str(error).split())[:400]}; take another checkpoint"
        ) from None
