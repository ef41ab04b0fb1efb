"""A folder that `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` open without this trainer.

    config.json  generation_config.json  model.safetensors     the plain transformers model, without the padding of its vocabulary
    tokenizer.json  tokenizer_config.json                      byte-level BPE, the same ids as tiktoken's
    README.md                                                  a model card with the run's facts

Everything is written beside the target and named last, so a folder that has the name is whole.
"""

import dataclasses
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils.logging import disable_progress_bar

from trainer import files
from trainer.checkpoint.manifest import Manifest, read_manifest
from trainer.data.tokenizer import END_OF_TEXT, load_tokenizer
from trainer.data.tokenizer import Tokenizer as TokenEncoding
from trainer.errors import CheckpointError, ConfigError, TrainerError
from trainer.model.build import generation_config

logger = logging.getLogger(__name__)
disable_progress_bar()  # one line a file of weights; ours take a second

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerFacts:
    """What a tiktoken encoding is made of."""

    ranks: Mapping[bytes, int]
    """Every token's bytes and its id; a lower rank merges first."""
    pattern: str
    """The regular expression that cuts a text into pieces before merging."""
    eot_token: str
    eot_id: int
    vocab_size: int


def export(
    out: Path,
    *,
    model_config: PretrainedConfig | dict[str, Any],
    weights: Path,
    tokenizer: TokenizerFacts | None,
    vocab_size: int | None = None,
    dtype: str | None = None,
    facts: Mapping[str, object] | None = None,
) -> Path:
    """Writes the export folder `out` from a checkpoint's `model.safetensors`; returns `out`.

    vocab_size  real ids where there is no tokenizer to say it; by default all rows of the embedding
    dtype       `float32`, `bfloat16` or `float16`; None: as stored
    facts       lines of the model card, by name
    raises      TrainerError when `out` has content, CheckpointError when the weights are not this config's, ConfigError
                for an unknown dtype
    """
    if dtype is not None and dtype not in _DTYPES:
        raise ConfigError(f"export dtype {dtype!r} is unknown; take one of {', '.join(_DTYPES)}")
    out = Path(out).resolve()  # "." has no name of its own
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise TrainerError(
            f"{out} exists and is not an empty folder; an export replaces nothing: name another folder, or remove it"
        )
    config = model_config if isinstance(model_config, PretrainedConfig) else _config_from_dict(model_config)
    model = _load(config, Path(weights))
    if dtype is not None:
        model = model.to(_DTYPES[dtype])
    real = tokenizer.vocab_size if tokenizer else vocab_size or config.vocab_size
    eot_id = tokenizer.eot_id if tokenizer else config.eos_token_id
    _leave_padding_out(model, real)
    model.config.bos_token_id = model.config.eos_token_id = eot_id
    model.generation_config = generation_config(real, real, eot_id)

    staging = out.with_name(f".staging-{out.name}-{os.getpid()}")
    if staging.exists():
        files.remove_folder(staging)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(staging)
        if tokenizer is not None:
            _save_tokenizer(tokenizer, staging, getattr(config, "max_position_embeddings", None))
        (staging / "README.md").write_text(model_card(model, out.name, real, facts or {}), encoding="utf-8")
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


def _config_from_dict(fields: dict[str, Any]) -> PretrainedConfig:
    fields = dict(fields)
    model_type = fields.pop("model_type", None)
    if model_type not in CONFIG_MAPPING:
        raise ConfigError(f"the model has model_type {model_type!r}, which this transformers does not know; update it")
    return CONFIG_MAPPING[model_type](**fields)


def _load(config: PretrainedConfig, weights: Path) -> PreTrainedModel:
    """The plain model with exactly these weights, in evaluation mode and in the precision they are stored in."""
    if not weights.is_file():
        raise CheckpointError(f"{weights} is not there; an export reads the model.safetensors of a checkpoint folder")
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


def _leave_padding_out(model: PreTrainedModel, vocab_size: int) -> None:
    """Takes the rows of padding ids from embedding and head.

    In training they have no probability, so their weights mean nothing; elsewhere each would take some from the real ids.
    """
    if vocab_size < model.config.vocab_size:
        with torch.random.fork_rng():  # a layer is made anew, with random weights that the kept rows replace
            model.resize_token_embeddings(vocab_size)


def _save_tokenizer(facts: TokenizerFacts, folder: Path, max_tokens: int | None) -> None:
    fast = PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer(facts),
        bos_token=facts.eot_token,
        eos_token=facts.eot_token,
        model_max_length=max_tokens or int(1e30),
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(folder)


def build_tokenizer(facts: TokenizerFacts) -> Tokenizer:
    """The `tokenizers` object that gives a text the ids a tiktoken encoding with the same facts gives it."""
    letters = byte_letters()

    def spell(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    vocabulary = {spell(token): rank for token, rank in facts.ranks.items()}
    merges = [(spell(left), spell(right)) for left, right in recover_merges(facts.ranks)]
    vocabulary[facts.eot_token] = facts.eot_id
    # tiktoken takes a piece that is a token as it stands, without merging; so must this.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(facts.pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(facts.eot_token, special=True, normalized=False)])
    return tokenizer


def byte_letters() -> list[str]:
    """The printable letter that stands for each byte in a byte-level vocabulary.

    source  GPT-2's convention: printable Latin-1 stands for itself, the others for U+0100 on, in order
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def recover_merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The two parts each longer token was merged from, in the order of the merges.

    A token's own bytes are merged again with the ranks below its own: what is left are its two parts. A token that no
    merges reach is left out, and only ever stands for a whole piece.
    """
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            parts = _merge(token, ranks, rank)
            if len(parts) == 2:
                merges.append((parts[0], parts[1]))
    return merges


def _merge(token: bytes, ranks: Mapping[bytes, int], below: int) -> list[bytes]:
    """Byte-pair merging of `token` with ranks below `below`."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 1:
        rank, place = min((ranks.get(parts[i] + parts[i + 1], below), i) for i in range(len(parts) - 1))
        if rank >= below:
            break
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts


def model_card(model: PreTrainedModel, name: str, vocab_size: int, facts: Mapping[str, object]) -> str:
    """A short README in Markdown: what the model is, the run's facts, how to open it."""
    rows = {
        "architecture": type(model).__name__,
        "parameters": f"{model.num_parameters():,}",
        "vocabulary": f"{vocab_size:,} ids",
        "precision": str(model.dtype).removeprefix("torch."),
        **facts,
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    return (
        f"---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n\n# {name}\n\n"
        f"A language model pretrained from random weights.\n\n| | |\n|---|---|\n{table}\n\n"
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{name}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")\n```\n'
    )


def export_checkpoint(folder: Path, out: Path, *, replace: bool = False) -> Path:
    """Exports a checkpoint's folder to `out`; with `replace`, in place of an earlier export there."""
    manifest = read_manifest(folder)
    tokenizer = tokenizer_of(manifest)
    facts = {
        "trained tokens": f"{manifest.tokens:,} in {manifest.step:,} steps",
        "validation loss": "not evaluated" if manifest.val_loss is None else f"{manifest.val_loss:.4f} nats a token",
    }
    parts = dict(
        model_config=manifest.model, weights=folder / "model.safetensors", vocab_size=manifest.vocab_size, facts=facts,
        tokenizer=tokenizer and TokenizerFacts(
            ranks=tokenizer.ranks, pattern=tokenizer.pattern, eot_token=END_OF_TEXT, eot_id=tokenizer.eot_id,
            vocab_size=tokenizer.vocab_size,
        ),
    )  # fmt: skip
    if not (replace and out.exists()):
        return export(out, **parts)
    earlier = files.set_aside(out, "earlier")
    try:
        export(out, **parts)
    except BaseException:
        files.move_folder(earlier, out)
        raise
    files.remove_folder(earlier)
    return out


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TrainedModel:
    """A checkpoint's model and what it takes to give it text."""

    model: PreTrainedModel
    tokenizer: TokenEncoding
    vocab_size: int
    sequence_length: int


def open_model(folder: Path) -> TrainedModel:
    """The model of a checkpoint, on a GPU where there is one, its weights in the precision they are stored in."""
    manifest = read_manifest(folder)
    tokenizer = tokenizer_of(manifest)
    if tokenizer is None:
        raise TrainerError(
            f"{folder} was trained without a tokenizer, so it cannot read a prompt; name one with data.tokenizer in the "
            "recipe of a new run, or `trainer export` the model and give it token ids"
        )
    model = _load(_config_from_dict(manifest.model), folder / "model.safetensors")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return TrainedModel(
        model=model.to(device), tokenizer=tokenizer, vocab_size=manifest.vocab_size, sequence_length=manifest.identity["sequence_length"]
    )  # fmt: skip


def tokenizer_of(manifest: Manifest) -> TokenEncoding | None:
    """The tokenizer that a checkpoint was trained with; CheckpointError when its file holds another vocabulary by now."""
    if not manifest.tokenizer:
        return None
    tokenizer, trained_with = load_tokenizer(manifest.tokenizer), manifest.identity.get("tokenizer")
    if tokenizer.sha256 != trained_with:
        raise CheckpointError(
            f"the tokenizer {manifest.tokenizer} has sha256 {tokenizer.sha256[:12]}, but the model was trained with "
            f"{str(trained_with)[:12]}: the file was changed since; put the earlier one back"
        )
    return tokenizer
