"""What an exported model needs beyond its weights: a config for transformers 4 and 5, and no more positions than were trained."""

import copy
import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from trainer.model.resolve import POSITION_FIELDS

logger = logging.getLogger(__name__)

_ROPES_WITHOUT_A_LIMIT = {"default", "linear", "llama3"}
"""Forms of rotary positions that do not depend on the config's number of positions, only on what stands in `rope_parameters`."""


def fit_positions(model: PreTrainedModel, sequence_length: int) -> None:
    """Sets the number of positions that a config states to the length of the sequences that were trained on, where it is larger.

    What stands in a table of positions beyond it never had a gradient, and is cut off. A model whose outputs would depend on
    the number (scaled rotary positions, tables of distances) stays as it is, and that is logged.
    """
    config = model.config
    field = next((name for name in POSITION_FIELDS if isinstance(getattr(config, name, None), int)), None)
    if field is None or getattr(config, field) <= sequence_length:
        return
    surplus = getattr(config, field) - sequence_length
    tables = _tables_of_positions(model, field, sequence_length, surplus)
    if tables is None or not _rope_types(config) <= _ROPES_WITHOUT_A_LIMIT:
        logger.info("export: %s stays %d: the outputs depend on it", field, sequence_length + surplus)
        return
    for table in tables:
        table.weight = nn.Parameter(table.weight.detach()[:-surplus].clone())
        table.num_embeddings -= surplus
    setattr(config, field, sequence_length)


def positions_of(config: PretrainedConfig) -> int | None:
    """The number of positions that a config states; None for a model without a limit."""
    return next((value for name in POSITION_FIELDS if isinstance(value := getattr(config, name, None), int)), None)


def _tables_of_positions(
    model: PreTrainedModel, field: str, sequence_length: int, surplus: int
) -> list[nn.Embedding] | None:
    """The embeddings that have a row for each position; None where anything else depends on their number."""
    shorter = copy.deepcopy(model.config)
    setattr(shorter, field, sequence_length)
    with torch.device("meta"):
        wanted = AutoModelForCausalLM.from_config(shorter).state_dict()
    here = model.state_dict()
    changed = [
        name
        for name in here.keys() | wanted.keys()
        if name not in here or name not in wanted or here[name].shape != wanted[name].shape
    ]
    tables = []
    for name in changed:
        module = model.get_submodule(name.rpartition(".")[0])
        if not isinstance(module, nn.Embedding) or name not in wanted or len(here[name]) - len(wanted[name]) != surplus:
            return None
        tables.append(module)
    return tables


def _rope_types(config: PretrainedConfig) -> set[str]:
    parameters = getattr(config, "rope_parameters", None) or {}
    return {rope.get("rope_type", "default") for rope in _ropes(parameters)}


def _ropes(parameters: dict[str, Any]) -> list[dict[str, Any]]:
    """The parameters of each form of rotary positions: one for all layers, or one for each type of layer."""
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return nested or ([parameters] if parameters else [])


def write_fields_of_transformers_4(path: Path) -> None:
    """Adds to a config.json what transformers 4, and what was written for it, reads where 5 reads `rope_parameters` and `dtype`."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    added = {key: value for key, value in fields_of_transformers_4(fields).items() if key not in fields}
    if added:
        path.write_text(json.dumps(dict(sorted({**fields, **added}.items())), indent=2) + "\n", encoding="utf-8")


def fields_of_transformers_4(fields: dict[str, Any]) -> dict[str, Any]:
    """`rope_parameters` and `dtype` in the words of transformers 4; nothing of rotary positions for a model without them.

    One form for all layers becomes rope_theta, partial_rotary_factor and, where it is not the default one, rope_scaling; of two
    forms that of full attention becomes these, and sliding attention's base becomes rope_local_base_freq (Gemma 3).
    """
    parameters = fields.get("rope_parameters") or {}
    rope, local = parameters.get("full_attention", parameters), parameters.get("sliding_attention")
    found = {name: rope[name] for name in ("rope_theta", "partial_rotary_factor") if rope.get(name) is not None}
    if rope.get("rope_type", "default") != "default":
        found["rope_scaling"] = {name: value for name, value in rope.items() if name not in found}
    if local and "rope_theta" in local:
        found["rope_local_base_freq"] = local["rope_theta"]
    if fields.get("dtype"):
        found["torch_dtype"] = fields["dtype"]
    return found
