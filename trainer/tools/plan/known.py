"""What is known of a run before anything of it is there: its vocabulary, its data, the shapes of its model."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from trainer import files
from trainer.config.schema import Config, DataConfig
from trainer.model.families import known_shapes
from trainer.model.presets import preset_fields
from trainer.model.shapes import Shapes, padded_vocabulary

ASSUMED_VOCABULARY = 50257
"""GPT-2's, which the recipes are prepared with."""


@dataclass(frozen=True)
class Data:
    """What is known of the data; None for what is not."""

    vocab_size: int
    train_tokens: int | None = None
    validation_tokens: int | None = None
    assumed: str | None = None
    """Why the vocabulary is a guess, and what says it."""


def data_of(config: Config) -> Data:
    """What the manifest, the tokenizer or the settings say; shards are not opened."""
    data = config.data
    if data.corpus and (files.project_folder() / data.corpus / "manifest.json").is_file():
        return _of_manifest(files.project_folder() / data.corpus)
    if data.vocab_size:
        return Data(data.vocab_size)
    if data.tokenizer or "/" not in str(data.corpus):
        return _of_names(data)
    words = (
        f"the vocabulary is taken to be GPT-2's, since {data.corpus} is not prepared yet; data.tokenizer says another"
    )
    return Data(ASSUMED_VOCABULARY, assumed=words)


def _of_manifest(folder: Path) -> Data:
    from trainer.data.manifest import read_manifest

    manifest = read_manifest(folder)
    assert manifest is not None, "it is there"
    train, validation = (manifest["splits"].get(name, {}).get("tokens") for name in ("train", "validation"))
    return Data(int(manifest["vocab_size"]), train, validation)


def _of_names(data: DataConfig) -> Data:
    """What an embedded corpus and a tokenizer say. raises DataError where there is none of the name"""
    from trainer.data.corpus import EMBEDDED, corpus_folder
    from trainer.data.tokenizer import load_tokenizer
    from trainer.errors import DataError
    from trainer.text import did_you_mean

    if data.corpus in EMBEDDED and (folder := corpus_folder(data)).is_dir():
        return _of_manifest(folder)
    if not data.tokenizer and data.corpus not in EMBEDDED:
        raise DataError(
            f"data.corpus {data.corpus!r} is neither prepared nor embedded; {did_you_mean(str(data.corpus), EMBEDDED)}"
        )
    return Data(load_tokenizer(data.tokenizer or str(data.corpus)).vocab_size)


def shapes_of(config: Config, data: Data) -> Shapes | None:
    """The shapes of a recipe's model from its fields alone; None where it must be built to be known."""
    wanted = config.model
    if wanted.init_from or config.plugins:
        return None
    fields = (preset_fields(wanted.preset) if wanted.preset else {}) | wanted.config
    rows = padded_vocabulary(data.vocab_size)
    shapes = known_shapes(
        str(fields.get("model_type")), fields, vocab_rows=rows, sequence_length=config.sequence_length
    )
    return shapes and with_frozen(shapes, config)


def with_frozen(shapes: Shapes, config: Config) -> Shapes:
    """The shapes, where what an entry of optimizer.groups freezes is not trained; the first entry that is found counts."""
    rules = config.optimizer.groups

    def is_trained(name: str, *, is_tied_head: bool) -> bool:
        names = (name, "lm_head.weight") if is_tied_head else (name,)
        found = next((rule for rule in rules if any(re.search(rule.match, each) for each in names)), None)
        return found is None or not found.freeze

    weights = tuple(
        replace(w, is_trained=is_trained(w.name, is_tied_head=w.is_head and w.is_table)) for w in shapes.weights
    )
    return replace(shapes, weights=weights)


def built_shapes(config: Config, data: Data) -> Shapes:
    """The shapes of the model as transformers builds it on the meta device; imports torch. raises ConfigError as a launch would"""
    import torch

    from trainer.model.build import build_model
    from trainer.model.flops import shapes_of_model
    from trainer.model.resolve import resolve
    from trainer.run.initial import initial_of, structure_of

    meta = torch.device("meta")
    if initial := initial_of(config, reads=False):
        model = structure_of(initial, config, meta)
    else:
        wanted, length = config.model, config.sequence_length
        resolved = resolve(wanted.preset, wanted.config, vocab_size=data.vocab_size, sequence_length=length)
        model = build_model(resolved, vocab_size=data.vocab_size, seed=0, device=meta)
    return with_frozen(shapes_of_model(model), config)
