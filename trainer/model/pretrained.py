"""The model that a run begins from: its config with what a recipe changes of it, and its weights by transformers' own loading, audited.

transformers renames, converts and ties on the way (prefixes, older layouts, one tensor per expert); what it could not place it reports. Of
that report everything is an error here that would leave a number at random, or drop one that a model needs.
"""

import contextlib
import copy
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as hf_logging
from transformers.utils.loading_report import update_key_name

from trainer.errors import ConfigError
from trainer.model.build import REFUSALS, build_model, finish_model, with_chunked_loss
from trainer.model.digest import weights_digest
from trainer.model.load import load_weights_into
from trainer.model.resolve import CONFIG_ERRORS, POSITION_FIELDS, all_fields, check_fields
from trainer.model.rope import of_several_kinds, with_rope
from trainer.model_files import CONFIG, WEIGHTS
from trainer.pretrained import Source
from trainer.text import numbered

logger = logging.getLogger(__name__)

MAX_NAMES = 6
"""Tensors that are named before only their number is said."""


@dataclass(frozen=True)
class SourceConfig:
    """The config of a model that a run begins from, before and after what the recipe changes."""

    original: PretrainedConfig
    config: PretrainedConfig
    """With what `model.config` and a longer sequence_length change; the vocabulary is the original's."""

    @property
    def changed(self) -> dict[str, tuple[Any, Any]]:
        """What differs, by field: before and after."""
        return differences(self.original, self.config)

    def enlarged(self, rows: int | None) -> PretrainedConfig:
        """The config with a vocabulary of `rows` ids; None: with as many as it has."""
        config = copy.deepcopy(self.config)
        if rows is not None:
            config.vocab_size = rows
        return config


def differences(before: PretrainedConfig, after: PretrainedConfig) -> dict[str, tuple[Any, Any]]:
    """The fields of two configs of one class that are not equal, with both values."""
    ours, theirs = before.to_dict(), after.to_dict()
    return {key: (ours.get(key), theirs.get(key)) for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)}


def source_config(source: Source, overrides: Mapping[str, Any], *, sequence_length: int) -> SourceConfig:
    """The config of a source, and the same with `overrides` (fields of the class) and as many positions as a sequence has tokens.

    raises  ConfigError when there is no causal language model of this config here, or a change would change a shape
    """
    original = config_of_source(source)
    own, aliases = all_fields(type(original)), type(original).attribute_map
    wanted = {key if key in own else aliases.get(key, key): value for key, value in overrides.items()}
    model_type = wanted.pop("model_type", original.model_type)
    if model_type != original.model_type:
        raise ConfigError(
            f"model.config.model_type is {model_type!r}, and model.init_from {source.name} is of model_type {original.model_type!r}; leave it out"
        )
    if "vocab_size" in wanted:
        raise ConfigError(
            f"model.config.vocab_size is that of model.init_from {source.name}; leave it out, or set model.resize_vocabulary=true to add rows for "
            "a larger tokenizer"
        )
    check_fields(wanted, type(original), sequence_length)
    rope = getattr(original, "rope_parameters", None) or {}
    _check_rope(wanted, rope, source)
    fields = with_rope({**source.fields, **wanted}, wanted, rope)
    config = _made(type(original), fields, source) if wanted else config_of_source(source)
    _raise_positions(config, sequence_length)
    if differences(original, config):
        _check_shapes(original, config, source, sequence_length, wanted)
    return SourceConfig(original, config)


def _check_rope(wanted: Mapping[str, Any], rope: Mapping[str, Any], source: Source) -> None:
    """Refuses a base of positions where the source's are of several kinds."""
    if "rope_theta" in wanted and of_several_kinds(rope):
        raise ConfigError(
            f"model.config.rope_theta {wanted['rope_theta']} does not say which layers of model.init_from {source.name} it is of: these have "
            f"positions of several kinds ({', '.join(rope)}); set model.config.rope_parameters, with all of them"
        )


def config_of_source(source: Source) -> PretrainedConfig:
    """The transformers config of a source, as it stands there. raises ConfigError when it is not one of a causal language model of text"""
    model_type = source.fields["model_type"]
    if model_type not in CONFIG_MAPPING:
        code = "; what stands in the folder as code is never executed (trust_remote_code)" * (
            "auto_map" in source.fields
        )
        raise ConfigError(
            f"model.init_from {source.name}: its model_type {model_type!r} is unknown to this transformers{code}; update transformers, or take "
            "another model"
        )
    config_class = CONFIG_MAPPING[model_type]
    if config_class not in MODEL_FOR_CAUSAL_LM_MAPPING or "vocab_size" not in all_fields(config_class):
        named = ", ".join(source.fields.get("architectures") or [model_type])
        raise ConfigError(
            f"model.init_from {source.name}: {named} is not a causal language model of text, so it has no next token to be trained on; take e.g. "
            "a llama, qwen3 or gpt2"
        )
    config = _made(config_class, source.fields, source)
    if config.is_encoder_decoder:
        raise ConfigError(
            f"model.init_from {source.name}: {model_type!r} is an encoder with a decoder; take a model that only continues text, e.g. a llama"
        )
    return config


def _made(config_class: type[PretrainedConfig], fields: Mapping[str, Any], source: Source) -> PretrainedConfig:
    try:
        return config_class.from_dict(copy.deepcopy(dict(fields)))  # it fills nested fields in
    except (*CONFIG_ERRORS, *REFUSALS) as error:
        raise ConfigError(
            f"model.init_from {source.name}: its {CONFIG} with model.config is refused by {config_class.__name__} "
            f"({' '.join(str(error).split())[:300]}); take back what the recipe changes, or update transformers"
        ) from None


def _raise_positions(config: PretrainedConfig, sequence_length: int) -> None:
    """Raises the number of positions to the sequence length where the config limits it and has fewer."""
    name = next((name for name in POSITION_FIELDS if isinstance(getattr(config, name, None), int)), None)
    if name is not None and getattr(config, name) < sequence_length:
        setattr(config, name, sequence_length)


def shapes_of(config: PretrainedConfig) -> dict[str, torch.Size]:
    """The shape of every tensor of the model of this config, by name."""
    with torch.device("meta"):
        model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def _check_shapes(
    original: PretrainedConfig,
    config: PretrainedConfig,
    source: Source,
    sequence_length: int,
    wanted: Mapping[str, Any],
) -> None:
    """Refuses a change with which the weights do not fit any more."""
    try:
        before, after = shapes_of(original), shapes_of(config)
    except REFUSALS as error:
        raise ConfigError(_unbuildable(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], source, error)) from error
    differing = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    if not differing:
        return
    name = differing[0]
    was, now = (list(shapes[name]) if name in shapes else "absent" for shapes in (before, after))
    changed = {key: pair for key, pair in differences(original, config).items() if key not in wanted}
    if changed and not wanted:
        key, (limit, _) = next(iter(changed.items()))
        raise ConfigError(
            f"sequence_length {sequence_length} is more than the {limit} positions of model.init_from {source.name} ({key}), which has a table "
            f"of them ({name}); set sequence_length to {limit} at the most"
        )
    raise ConfigError(
        f"model.config ({', '.join(wanted)}) changes the shapes of model.init_from {source.name}: {name} is {was} there and would be {now}, "
        f"{numbered(len(differing), 'tensor')} in all; only what changes no shape may be set, e.g. rope_scaling or a dropout"
    )


def _unbuildable(model_class: type[PreTrainedModel], source: Source, error: Exception) -> str:
    """What to tell of a config of which no model can be made."""
    said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return (
        f"model.init_from {source.name}: no {model_class.__name__} can be made of its {CONFIG} with model.config ({said}); take back what the "
        "recipe changes of the fields this speaks of, or mend them there"
    )


def load_source(
    source: Source,
    config: PretrainedConfig,
    *,
    rows: int | None = None,
    seed: int,
    device: torch.device,
    gradient_checkpointing: bool = False,
) -> tuple[PreTrainedModel, str]:
    """The model of a source in fp32, in training mode on `device`, and the digest of its weights.

    Beside the model there is never more than one tensor of it in memory.

    config  of SourceConfig
    rows    token ids that the vocabulary is enlarged to, with rows near the mean of the old ones, of which `seed` decides; None: as it is
    raises  ConfigError when a tensor is missing, left over, of another shape or not finite, or the model cannot be trained
    """
    if source.vocab_size is not None:
        vocab_size = source.vocab_size
        model = build_model(config, vocab_size=vocab_size, seed=seed, device=device)
        load_weights_into(model, source.folder / WEIGHTS)
    else:
        vocab_size = config.vocab_size
        model = _from_pretrained(source, config, device)
    if rows is not None:
        _enlarge(model, vocab_size, rows, seed)
        vocab_size = rows
    digest = weights_digest(model, source.name)
    return finish_model(model, vocab_size, gradient_checkpointing=gradient_checkpointing), digest


def _enlarge(model: PreTrainedModel, vocab_size: int, rows: int, seed: int) -> None:
    """Gives embedding and head a row for each of `rows` ids. The new ones are drawn near the mean of the old, of which the seed decides."""
    device = next(model.parameters()).device
    with _quiet(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        if model.config.vocab_size != vocab_size:  # the padding of this trainer, whose rows mean nothing
            model.resize_token_embeddings(vocab_size)
        model.resize_token_embeddings(rows, mean_resizing=True)


@dataclass
class _Report:
    """What transformers could not place, before what a class declares ignorable is taken out of it, and after."""

    missing: set[str] = field(default_factory=set)
    unexpected: set[str] = field(default_factory=set)
    conversions: dict[str, str] = field(default_factory=dict)
    problems: dict[str, Any] = field(default_factory=dict)

    @property
    def ignored(self) -> list[str]:
        left = {*self.problems["missing_keys"], *self.problems["unexpected_keys"]}
        return sorted((self.missing | self.unexpected) - left)


def _from_pretrained(source: Source, config: PretrainedConfig, device: torch.device) -> PreTrainedModel:
    """Loads by transformers' own way, and audits what came of it."""
    model_class, report = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], _Report()
    attention = {"attn_implementation": "sdpa"} if model_class._supports_sdpa else {}
    try:
        with _quiet(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            model, report.problems = _reporting(model_class, report).from_pretrained(
                source.folder,
                config=config,
                dtype=torch.float32,
                device_map={"": device},
                use_safetensors=True,
                local_files_only=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **attention,
            )
    except (RuntimeError, ValueError, OSError, SafetensorError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        why = next(iter(report.conversions.values()), str(error)).strip().splitlines()[-1]
        raise ConfigError(
            f"model.init_from {source.name}: {model_class.__name__} could not be loaded from {source.folder} ({why[:300]}); copy or download the "
            "whole model again, or take another revision"
        ) from error
    except REFUSALS as error:
        raise ConfigError(_unbuildable(model_class, source, error)) from error
    _audit(model, report, source)
    if device.type == "cpu":
        _leave_the_files(model)
    model.__class__ = with_chunked_loss(model_class)
    return model


def _reporting(model_class: type[PreTrainedModel], report: _Report) -> type[PreTrainedModel]:
    """The class, whose loading leaves in `report` what it found before it takes out what the class declares ignorable."""

    class Reporting(model_class):  # type: ignore[valid-type, misc]  # the class is only known when a run is built
        def _adjust_missing_and_unexpected_keys(self, loading_info: Any) -> None:
            report.missing, report.unexpected = set(loading_info.missing_keys), set(loading_info.unexpected_keys)
            report.conversions.update(loading_info.conversion_errors)
            super()._adjust_missing_and_unexpected_keys(loading_info)

    Reporting.__module__, Reporting.__name__, Reporting.__qualname__ = (
        model_class.__module__,
        model_class.__name__,
        model_class.__qualname__,
    )
    return Reporting


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' table of what it could not place, and its bars: the audit says it in sentences, once and not by every rank."""
    level, had_bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity(hf_logging.CRITICAL)
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if had_bars:
            hf_logging.enable_progress_bar()


def _audit(model: PreTrainedModel, report: _Report, source: Source) -> None:
    """Refuses a model of which a number would be random, or that lacks a place for one; logs what its class declares ignorable."""
    there = model.state_dict(keep_vars=True)
    loaded = {id(tensor) for name, tensor in there.items() if name not in report.missing}
    trainable = {name for name, tensor in there.items() if isinstance(tensor, torch.nn.Parameter)}
    random = {name for name in report.missing & trainable if id(there[name]) not in loaded}
    problems = []
    if missing := sorted(random | set(report.problems["missing_keys"])):
        problems.append(f"{_named(missing)} missing, and would begin at random")
    if unexpected := sorted(report.problems["unexpected_keys"]):
        problems.append(f"{_named(unexpected)} there, and have no place in it")
    for name, stored, wanted in sorted(report.problems["mismatched_keys"])[:MAX_NAMES]:
        problems.append(f"{name} is {list(stored)} there and {list(wanted)} by its {CONFIG}")
    if problems:
        heads = " (it has no head that predicts tokens)" if _lacks_head(model, missing) else ""
        raise ConfigError(
            f"model.init_from {source.name} is not a whole {type(model).__name__}{heads}: {'; '.join(problems)}. Take the folder or revision "
            f"whose {CONFIG} and weights belong together"
        )
    if report.ignored:
        logger.info(
            "model.init_from %s: %s, as %s declares, means nothing",
            source.name,
            _named(report.ignored),
            type(model).__name__,
        )


def _lacks_head(model: PreTrainedModel, missing: list[str]) -> bool:
    head = model.get_output_embeddings()
    names = {id(tensor): name for name, tensor in model.state_dict(keep_vars=True).items()}
    return head is not None and names.get(id(head.weight)) in missing


def _named(names: list[str]) -> str:
    """The names, those of several layers as one, of many the first with the number of all: `a, layers.{0, 1}.b (7 tensors) are`."""
    merged = list(update_key_name(names))
    more = "" if len(merged) <= MAX_NAMES else " and others"
    number = "" if len(merged) == len(names) and not more else f" ({len(names)} tensors)"
    return f"{', '.join(merged[:MAX_NAMES])}{more}{number} {'is' if len(names) == 1 else 'are'}"


def _leave_the_files(model: PreTrainedModel) -> None:
    """Copies what still lies in the files' own pages, one tensor after the other: who writes to a file later must not write to the model."""
    tensors: dict[int, Tensor] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    for tensor in tensors.values():
        tensor.data = tensor.data.clone()
