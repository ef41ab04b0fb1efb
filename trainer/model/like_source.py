"""An export of a model that began from another one: its tensors in the types, its config with the values and its other files with the bytes of the source.

Only what the run changed is another: fields of the config that the recipe, a longer sequence_length or more rows changed.
"""

import copy
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from trainer.model.portable import fields_of_transformers_4
from trainer.model.pretrained import differences
from trainer.model_files import CONFIG, GENERATION_CONFIG

_NOT_OF_THE_MODEL = {"transformers_version", "architectures", "dtype", "torch_dtype", "_name_or_path"}
"""Fields that say how and by what a config was written."""
_ROPE_OF_TRANSFORMERS_4 = {"rope_theta", "rope_scaling", "rope_local_base_freq"}


@dataclass(frozen=True)
class Origin:
    """What an export hands on of the model that a run began from."""

    folder: Path
    """Where the files are."""
    files: tuple[str, ...]
    """Their paths in it."""
    dtype: str
    """What most of its numbers were stored in, as torch calls it."""
    dtypes: Mapping[str, str]
    """The tensors that were stored in another one, by their names in its files."""


def to_types_of(model: PreTrainedModel, origin: Origin) -> None:
    """Gives every tensor that is saved the type that it has in the source, in place."""
    names = _names_in_files(model) if origin.dtypes else {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_floating_point():
            kind = origin.dtypes.get(names.get(name, name), origin.dtype)
            tensor.data = tensor.data.to(getattr(torch, kind))


def _names_in_files(model: PreTrainedModel) -> dict[str, str]:
    """What the tensors of a model are called in its files, as far as each is one tensor there too."""
    here = {name: tensor.detach().to("meta") for name, tensor in model.state_dict().items()}
    names = {id(tensor): name for name, tensor in here.items()}
    there = revert_weight_conversion(model, here)
    return {names[id(tensor)]: name for name, tensor in there.items() if id(tensor) in names}


def write_files_of(origin: Origin, model: PreTrainedModel, folder: Path, dtype: str | None) -> None:
    """Puts the source's files beside the weights that save_pretrained wrote, in place of those that it wrote of itself.

    dtype  what the weights were asked to be stored in, as torch calls it; None: as in the source
    """
    for name in (GENERATION_CONFIG, CONFIG):
        (folder / name).unlink(missing_ok=True)
    for name in origin.files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(origin.folder / name, folder / name)
    fields = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    now = fields_like(fields, model.config)
    now["architectures"] = [type(model).__name__]
    if dtype not in (None, origin.dtype):
        now["torch_dtype" if "torch_dtype" in fields else "dtype"] = dtype
    if now != fields:
        (folder / CONFIG).write_text(json.dumps(now, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def fields_like(fields: Mapping[str, Any], config: PretrainedConfig) -> dict[str, Any]:
    """The fields of a config.json, with the values of `config` where these are other ones, under the names that the fields have."""
    changed = _changed(fields, config)
    if not changed:
        return dict(fields)
    aliases = {inner: alias for alias, inner in type(config).attribute_map.items()}
    found = {**fields}
    if (
        "rope_parameters" in changed
        and "rope_parameters" not in fields
        and not _ROPE_OF_TRANSFORMERS_4.isdisjoint(fields)
    ):
        older = fields_of_transformers_4({"rope_parameters": changed.pop("rope_parameters")})
        found |= {key: older.get(key) for key in _ROPE_OF_TRANSFORMERS_4 if key in fields or key in older}
    for key, value in changed.items():
        found[key if key in fields else aliases[key] if aliases.get(key) in fields else key] = value
    return found | _changed(found, config)


def _changed(fields: Mapping[str, Any], config: PretrainedConfig) -> dict[str, Any]:
    """The fields of `config` that are not what the config of `fields` has."""
    pairs = differences(CONFIG_MAPPING[fields["model_type"]].from_dict(copy.deepcopy(dict(fields))), config)
    return {key: value for key, (_, value) in pairs.items() if key not in _NOT_OF_THE_MODEL}
