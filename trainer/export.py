"""A folder that `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` open without this trainer.

    config.json  generation_config.json  model.safetensors     the plain transformers model, without the padding of its vocabulary
    tokenizer.json  tokenizer_config.json                      the tokenizer's own files, or the same ids as tiktoken's
                                                               of a model that began from another one: that one's own files and values
    README.md                                                  a model card with the run's facts

Everything is written beside the target and named last, so a folder that has the name is whole.
"""

import dataclasses
import logging
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from trainer import files
from trainer.checkpoint.format.carried import FOLDER, carried, tokenizer_name
from trainer.checkpoint.format.manifest import Manifest, read_manifest
from trainer.checkpoint.format.tensor_names import first_not_finite
from trainer.config.folders import folder_of_run
from trainer.config.load import kept_settings, read_settings
from trainer.data.exported_tokenizer import write_beside_model
from trainer.data.tokenizer import END_OF_TEXT, RanksTokenizer, load_tokenizer
from trainer.data.tokenizer import Tokenizer as TokenEncoding
from trainer.errors import CheckpointError, ConfigError, TrainerError
from trainer.evaluation.generate import Limits
from trainer.metrics.curves import CURVE, end_of_step, records_from
from trainer.model.build import generation_config
from trainer.model.card import BEGUN_FROM, model_card
from trainer.model.like_source import Origin, to_types_of, write_files_of
from trainer.model.load import config_of
from trainer.model.portable import fit_positions, positions_of, write_fields_of_transformers_4
from trainer.model.tokenizer_files import TokenizerFacts, save_tokenizer
from trainer.model_files import CONFIG
from trainer.plugins import import_plugins
from trainer.pretrained import tokenizer_files

logger = logging.getLogger(__name__)
disable_progress_bar()  # one line a file of weights; ours take a second

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_DTYPES |= {str(dtype).removeprefix("torch."): dtype for dtype in _DTYPES.values()}
_ACCURACIES = ("acc", "acc_norm", "chance")

EVALUATIONS = "evaluations.jsonl"
"""In runs/NAME: what `trainer eval` found."""


def export(
    out: Path,
    *,
    model_config: PretrainedConfig | dict[str, Any],
    weights: Path,
    tokenizer: TokenizerFacts | TokenEncoding | None,
    vocab_size: int | None = None,
    sequence_length: int | None = None,
    dtype: str | None = None,
    facts: Mapping[str, object] | None = None,
    license: str = "unknown",
    origin: Origin | None = None,
) -> Path:
    """Writes the export folder `out` from a checkpoint's `model.safetensors`; returns `out`.

    vocab_size       real ids where there is no tokenizer to say it; by default all rows of the embedding
    sequence_length  tokens of the sequences that it was trained on: config and tokenizer state it; None: what the config states
    dtype            `bf16`, `fp16` or `fp32`, or torch's name of it; None: as stored
    facts            lines of the model card, by name
    license          of the model card, as the hub knows licences
    origin           what the model began from, whose types, values and files go out; None: random weights
    raises           TrainerError when `out` has content, CheckpointError when the weights are not this config's, ConfigError
                     for an unknown dtype
    """
    if dtype is not None and dtype not in _DTYPES:
        raise ConfigError(f"export dtype {dtype!r} is unknown; take one of {', '.join(_DTYPES)}")
    out = Path(out).resolve()  # "." has no name of its own
    _check_empty(out)
    config = model_config if isinstance(model_config, PretrainedConfig) else config_of(model_config)
    model = _in_type(_load(config, Path(weights)), dtype, weights, origin)
    if origin:
        real = config.vocab_size
    else:
        real = tokenizer.vocab_size if tokenizer else vocab_size or config.vocab_size
        _fit(model, real, tokenizer.eot_id if tokenizer else config.eos_token_id, sequence_length)

    staging = out.with_name(f".staging-{out.name}-{os.getpid()}")
    if staging.exists():
        files.remove_folder(staging)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _write(model, staging, tokenizer, sequence_length)
        if origin:
            write_files_of(
                origin, model, staging, None if dtype is None else str(_DTYPES[dtype]).removeprefix("torch.")
            )
        (staging / "README.md").write_text(model_card(model, out.name, real, facts or {}, license), encoding="utf-8")
        files.follow_umask(staging)
        if out.exists():
            out.rmdir()
        files.commit_folder(staging, out)
    except BaseException as error:
        if staging.exists():
            files.remove_folder(staging)
        if isinstance(error, (OSError, SafetensorError)):
            raise TrainerError(f"{out} cannot be written ({error}); make room, or name another folder") from error
        raise
    logger.info("export: %s, %s", out, type(model).__name__)
    return out


def _check_empty(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise TrainerError(
            f"{out} exists and is not an empty folder; an export replaces nothing: name another folder, or remove it"
        )


def _fit(model: PreTrainedModel, vocab_size: int, eot_id: int | None, sequence_length: int | None) -> None:
    """Leaves out what was not trained, and says what ends a text: for a model that began from random weights."""
    _leave_padding_out(model, vocab_size)
    if sequence_length is not None:
        fit_positions(model, sequence_length)
    model.config.bos_token_id = model.config.eos_token_id = eot_id
    model.generation_config = generation_config(vocab_size, vocab_size, eot_id)


def _write(
    model: PreTrainedModel, folder: Path, tokenizer: TokenizerFacts | TokenEncoding | None, sequence_length: int | None
) -> None:
    """The model and its tokenizer, without a card."""
    model.save_pretrained(folder)
    write_fields_of_transformers_4(folder / "config.json")
    if isinstance(tokenizer, TokenizerFacts):
        save_tokenizer(tokenizer, folder, positions_of(model.config) or sequence_length)
    elif tokenizer is not None:
        write_beside_model(tokenizer, folder)


def _load(config: PretrainedConfig, weights: Path) -> PreTrainedModel:
    """The plain model with exactly these weights, in evaluation mode and in the precision they are stored in."""
    if not weights.is_file():
        raise CheckpointError(
            f"{weights} is not there; give the folder of a checkpoint, which holds its model.safetensors"
        )
    stored = load_file(weights)
    floating = {value.dtype for value in stored.values() if value.is_floating_point()}
    dtype = floating.pop() if len(floating) == 1 else torch.float32
    with torch.random.fork_rng():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    try:
        result = model.load_state_dict(stored, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"{weights} does not fit the config: {' '.join(str(error).split())}") from error
    # A tied parameter is stored once, under either of its names; tied or not, what is still missing would be random.
    loaded = {id(value) for name, value in model.state_dict(keep_vars=True).items() if name in stored}
    missing = [n for n in result.missing_keys if id(model.state_dict(keep_vars=True)[n]) not in loaded]
    if missing or result.unexpected_keys:
        raise CheckpointError(
            f"{weights} does not fit the config: missing {missing or 'nothing'}, "
            f"unexpected {result.unexpected_keys or 'nothing'}; take the config that stands in the same checkpoint"
        )
    return model.eval()


def _in_type(model: PreTrainedModel, dtype: str | None, weights: Path, origin: Origin | None) -> PreTrainedModel:
    """The model in another type, in those of its origin, or as it is. raises CheckpointError that names the tensor when its numbers are not finite there"""
    if dtype is not None:
        model = model.to(_DTYPES[dtype])
    elif origin:
        to_types_of(model, origin)
    if tensor := first_not_finite(model.named_parameters()):
        kind = str(model.dtype).removeprefix("torch.")
        raise CheckpointError(
            f"{weights} is not worth an export: {tensor} holds numbers that are not finite in {kind}; its run has diverged, or the type is too "
            "small for it: take an earlier checkpoint, or another --dtype"
        )
    return model


def _leave_padding_out(model: PreTrainedModel, vocab_size: int) -> None:
    """Takes the rows of padding ids from embedding and head.

    In training they have no probability, so their weights mean nothing; elsewhere each would take some from the real ids.
    """
    if vocab_size < model.config.vocab_size:
        with torch.random.fork_rng():  # a layer is made anew, with random weights that the kept rows replace
            model.resize_token_embeddings(vocab_size)


def export_checkpoint(
    folder: Path, out: Path, *, replace: bool = False, dtype: str | None = None, license: str = "unknown"
) -> Path:
    """Exports a checkpoint's folder to `out`; with `replace`, in place of an earlier export there. The others are as of `export`."""
    manifest = read_manifest(folder)
    import_plugins(plugins_of(folder))
    origin = _origin(folder, manifest)
    has_own = origin is not None and bool(tokenizer_files(origin.folder))
    tokenizer = None if has_own else tokenizer_of(folder, manifest)
    write = partial(
        export,
        model_config=manifest.model,
        weights=folder / "model.safetensors",
        vocab_size=manifest.vocab_size,
        facts=_facts(folder, manifest),
        sequence_length=manifest.identity.get("sequence_length"),
        dtype=dtype,
        license=license,
        origin=origin,
        tokenizer=_facts_or_files(tokenizer),
    )
    if not (replace and out.exists()):
        return write(out)
    earlier = files.set_aside(out, "earlier")
    try:
        write(out)
    except BaseException:
        files.move_folder(earlier, out)
        raise
    files.remove_folder(earlier)
    return out


def _facts_or_files(tokenizer: TokenEncoding | None) -> TokenizerFacts | TokenEncoding | None:
    """What a tokenizer is written from: its facts where it is a vocabulary alone, else its own files."""
    if not isinstance(tokenizer, RanksTokenizer):
        return tokenizer
    return TokenizerFacts(
        ranks=tokenizer.ranks,
        pattern=tokenizer.pattern,
        eot_token=END_OF_TEXT,
        eot_id=tokenizer.eot_id,
        vocab_size=tokenizer.vocab_size,
    )


def plugins_of(folder: Path) -> list[str]:
    """The packages that register the architecture of a checkpoint's model."""
    kept = folder / "config.yaml"
    return list(kept_settings(kept)["plugins"]) if kept.is_file() else []


def _origin(folder: Path, manifest: Manifest) -> Origin | None:
    """What a checkpoint keeps of the model that its run began from; None for random weights, here or where that one began."""
    files, began = carried(folder), manifest.initial
    if CONFIG not in files:
        return None
    return Origin(folder / FOLDER, tuple(files), began["dtype"], began["dtypes"])


def _facts(folder: Path, manifest: Manifest) -> dict[str, object]:
    """What the model card says of a checkpoint's training, by name."""
    settings = read_settings(folder / "config.yaml")
    data, optimizer, schedule = (settings.get(section, {}) for section in ("data", "optimizer", "schedule"))
    decay = ", weight decay {weight_decay}".format_map(optimizer) if "weight_decay" in optimizer else ""
    runs, name = settings.get("runs_folder", "runs"), str(settings.get("name", ""))
    run = folder_of_run(folder) or files.project_folder() / runs / name
    loss = "not evaluated" if manifest.val_loss_words is None else f"{manifest.val_loss_words} (nats per token)"
    return {
        **({BEGUN_FROM: manifest.began_from} if manifest.began_from else {}),
        "trained tokens": f"{manifest.tokens:,} in {manifest.step:,} steps",
        "data": data.get("corpus") or ", ".join(data.get("train", [])),
        "sequence length": f"{manifest.identity.get('sequence_length', settings.get('sequence_length'))} tokens",
        "batch": f"{settings.get('global_batch')} sequences",
        "optimizer": f"{optimizer.get('name')}{decay}",
        "learning rate": f"{_peak_rates(optimizer)} at its peak, {schedule.get('name')}, {schedule.get('warmup_steps', 0):,} steps of warm-up",
        **({"trained otherwise": "; ".join(map(_group_words, groups))} if (groups := optimizer.get("groups")) else {}),
        "computed in": "fp32" if manifest.precision == "no" else manifest.precision,
        "validation loss": loss,
        **_evaluations(run, manifest.step),
    }


def _peak_rates(optimizer: Mapping[str, Any]) -> str:
    own = f"{optimizer.get('name')}_lr"  # an optimizer's own rate beside the one that all have, such as muon_lr
    return f"{optimizer.get('lr')}" + (f" ({own} {optimizer[own]:g})" if own in optimizer else "")


def _group_words(group: Mapping[str, Any]) -> str:
    """An entry of optimizer.groups: `lm_head|embed (lr 1e-05, weight_decay 0.0)`."""
    others = ", ".join(
        "frozen" if key == "freeze" else f"{key} {value}" for key, value in group.items() if key != "match"
    )
    return f"{group.get('match')} ({others})"


def _evaluations(run: Path, step: int) -> dict[str, str]:
    """What tasks came to at a step, during the run and by `trainer eval`, whose later word counts."""
    found: dict[str, str] = {}
    curve = run / CURVE
    for _, record in records_from(curve, end_of_step(curve, step - 1)):
        if record["step"] > step:
            break
        for task in (key.removesuffix("/acc") for key in record if key.endswith("/acc")):
            found[task] = _accuracy({name: record.get(f"{task}/{name}") for name in _ACCURACIES})
    for _, record in records_from(run / EVALUATIONS, 0):
        if record["step"] == step and isinstance(record.get("acc"), float):
            found[str(record["task"])] = _accuracy(record)
        elif record["step"] == step and isinstance(record.get("loss"), float):
            bits = f", {record['bits_per_byte']:.4f} bits per byte" if record.get("bits_per_byte") else ""
            tokens = f"{record.get('num_tokens', 0):,} tokens"
            found[f"loss on {record.get('data')}"] = f"{record['loss']:.4f} nats per token{bits} ({tokens})"
    return found


def _accuracy(numbers: Mapping[str, Any]) -> str:
    known = {name: numbers[name] for name in _ACCURACIES if numbers.get(name) is not None}
    return ", ".join(f"{name} {value:.3f}" for name, value in known.items())


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TrainedModel:
    """A checkpoint's model and what it takes to give it text."""

    model: PreTrainedModel
    tokenizer: TokenEncoding
    vocab_size: int
    sequence_length: int

    def limits(self, max_new_tokens: int) -> Limits:
        """Of a text that it writes."""
        ids = {"vocab_size": self.vocab_size, "eot_id": self.tokenizer.eot_id}
        return Limits(max_new_tokens=max_new_tokens, sequence_length=self.sequence_length, **ids)


def open_model(folder: Path) -> TrainedModel:
    """The model of a checkpoint, on a GPU where there is one, its weights in the precision they are stored in."""
    manifest = read_manifest(folder)
    tokenizer = tokenizer_of(folder, manifest)
    if tokenizer is None:
        raise TrainerError(
            f"{folder} was trained without a tokenizer, so it cannot read a prompt; name one with data.tokenizer in the "
            "recipe of a new run, or `trainer export` the model and give it token ids"
        )
    import_plugins(plugins_of(folder))
    model = _load(config_of(manifest.model), folder / "model.safetensors")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    length = manifest.identity["sequence_length"]
    return TrainedModel(
        model=model.to(device), tokenizer=tokenizer, vocab_size=manifest.vocab_size, sequence_length=length
    )


def tokenizer_of(folder: Path, manifest: Manifest) -> TokenEncoding | None:
    """The tokenizer that a checkpoint was trained with; CheckpointError when its file holds another vocabulary by now."""
    name = tokenizer_name(folder, manifest)
    if name is None:
        return None
    tokenizer, trained_with = load_tokenizer(name), manifest.identity.get("tokenizer")
    if tokenizer.sha256 != trained_with:
        raise CheckpointError(
            f"the tokenizer {name} has sha256 {tokenizer.sha256[:12]}, but the model was trained with "
            f"{str(trained_with)[:12]}: the file was changed since; put the earlier one back"
        )
    return tokenizer
