"""The model of a run that begins from another one (`model.init_from`): from its source the first time, from the run's own checkpoints ever after.

The source is read once in the life of a run, by each rank. What a resume needs of it stands in every checkpoint: its config in the manifest's
`initial`, the files that an export hands on in the folder `source`.
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.checkpoint.format.carried import FOLDER, carried
from trainer.checkpoint.format.manifest import Manifest
from trainer.checkpoint.format.store import CheckpointStore
from trainer.checkpoint.resume.select import look
from trainer.checkpoint.resume.source import RUN, check_bytes, find_source
from trainer.config.folders import checkpoints_folder, resume_point
from trainer.config.schema import Config
from trainer.data.corpus import Corpus
from trainer.errors import CheckpointError, ConfigError
from trainer.launch.logging_setup import warn_once_per_machine
from trainer.model.build import build_model
from trainer.model.pretrained import SourceConfig, load_source, source_config
from trainer.model_files import CONFIG
from trainer.plugins import import_plugins
from trainer.pretrained import Source, handed_on, tokenizer_files
from trainer.run.own_tokenizer import Likeness, likeness
from trainer.text import duration, numbered

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Initial:
    """Where the model of a run begins."""

    source: Source
    made: SourceConfig
    """Its config, with what the recipe changes in it."""
    vocab_size: int
    """Real ids, in the end."""
    rows: int | None
    """How many rows of embedding and head the source's are enlarged to; None: as many as they are."""
    files: tuple[Path, tuple[str, ...]]
    """What an export hands on: the folder, and the names in it."""
    facts: Mapping[str, Any]
    """As the manifest's `initial` has them; the digest is added once the weights are read."""
    has_begun: bool
    """Whether it goes on from a checkpoint, so that the source is not read."""
    likeness: Likeness | None = None
    """Of the tokenizers, where the run begins."""
    unread: str | None = None
    """What to say where the recipe names another model by now, which is not read; None where it does not."""


def initial_of(config: Config, corpus: Corpus | None = None, *, reads: bool = True) -> Initial | None:
    """Where the model of a run begins; None for random weights. Imports the recipe's own architectures first.

    corpus  whose vocabulary must fit; None: of no meaning
    reads   whether the weights will be read, and must be here; otherwise those of a model of the hub need not be downloaded
    raises  TrainerError with what is wrong with the source, with what the recipe changes in it, or with the vocabulary
    """
    import_plugins(config.plugins)
    if config.model.init_from is None:
        return None
    found = look(CheckpointStore(checkpoints_folder(config)), resume_point(config))
    return _fresh(config, corpus, reads) if found.manifest is None else _begun(config, corpus, *found.found())


def _fresh(config: Config, corpus: Corpus | None, reads: bool) -> Initial:
    source = find_source(str(config.model.init_from), weights=reads)
    made = source_config(source, config.model.config, sequence_length=config.sequence_length)
    has = source.vocab_size or made.config.vocab_size
    rows = _rows(config, corpus, has, source.name)
    alike = likeness(source, corpus.tokenizer if corpus else None)
    facts = {
        "source": source.name,
        "revision": source.revision,
        "dtype": source.dtype,
        "dtypes": source.dtypes,
        "config": source.fields,
        "vocab_size": has,
        "is_checkpoint": source.is_checkpoint,
        "rows_added": 0 if rows is None else rows - has,
        "tokenizer": alike.kind,
        "changed": made.changed,
    }
    return Initial(source, made, rows or has, rows, _files(source, alike), _plain(facts), False, alike)


def _begun(config: Config, corpus: Corpus | None, checkpoint: Path, manifest: Manifest) -> Initial:
    before = manifest.initial
    if not before:
        raise CheckpointError(
            f"model.init_from is {config.model.init_from}, and {checkpoint}, which the run goes on from, began from random weights; take "
            "model.init_from out, or give the new run another name"
        )
    has, added = before["vocab_size"], before["rows_added"]
    source = Source(
        before["source"],
        checkpoint / FOLDER,
        before["config"],
        before["dtype"],
        before["dtypes"],
        before["revision"],
        vocab_size=has if before["is_checkpoint"] else None,
    )
    made = source_config(source, config.model.config, sequence_length=config.sequence_length)
    _rows(config, corpus, has + added, source.name, may_add=False)
    files = (checkpoint / FOLDER, tuple(carried(checkpoint)))
    facts = _plain({**before, "changed": made.changed})
    unread = None if _means(str(config.model.init_from), source.name) else _unread(config, checkpoint, source.name)
    return Initial(source, made, has + added, has + added if added else None, files, facts, True, unread=unread)


def _means(given: str, source: str) -> bool:
    """Whether a recipe's model.init_from is what a run began from: with its commit or step, where the recipe gives it without one or by a word."""
    name, _, wanted = given.rpartition("@")
    is_word = given.startswith(RUN) and bool(name) and not wanted.isdigit()
    return source == given or source.startswith(f"{name if is_word else given}@")


def _unread(config: Config, checkpoint: Path, began_from: str) -> str:
    return (
        f"model.init_from is {config.model.init_from}, and is not read: the run goes on from {checkpoint}, whose weights began from {began_from}; to "
        "begin from the other, give the new run another name"
    )


def _plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back."""
    return json.loads(
        json.dumps(facts, default=lambda value: dict(value) if isinstance(value, Mapping) else str(value))
    )


def _rows(config: Config, corpus: Corpus | None, has: int, name: str, *, may_add: bool = True) -> int | None:
    """The number of ids that the vocabulary must be enlarged to; None where it is large enough. raises ConfigError where it may not be"""
    wanted = corpus.vocab_size if corpus else 0
    if corpus is None or wanted <= has:
        return None
    if may_add and config.model.resize_vocabulary:
        return wanted
    whose = f"the tokenizer {corpus.tokenizer.name}" if corpus.tokenizer else "data.vocab_size"
    remedy = (
        f"set model.resize_vocabulary=true to add {numbered(wanted - has, 'row')}, or take the model's own tokenizer"
        if may_add
        else "go on with the tokenizer that the run began with, or give the new run another name"
    )
    raise ConfigError(
        f"{whose} has {wanted:,} ids, and the model that begins from {name} has rows for {has:,}: ids from {has:,} on could not be looked up; "
        f"{remedy}"
    )


def _files(source: Source, alike: Likeness) -> tuple[Path, tuple[str, ...]]:
    """What an export hands on: without the files of a tokenizer where another one is trained with."""
    if source.is_checkpoint:
        folder, names = source.folder / FOLDER, carried(source.folder)
    else:
        folder, names = source.folder, [CONFIG, *handed_on(source.folder)]
    left_out = tokenizer_files(folder) if alike.kind == "another" else []
    return folder, tuple(name for name in names if name not in left_out)


def structure_of(initial: Initial, config: Config, device: torch.device) -> torch.nn.Module:
    """The model of a run that begins from another one, with its shapes and no weights of meaning: what a checkpoint is loaded into."""
    model = build_model(
        initial.made.enlarged(initial.rows),
        vocab_size=initial.vocab_size,
        seed=config.seed,
        device=device,
        gradient_checkpointing=config.model.gradient_checkpointing,
    )
    model.initial = dict(initial.facts)
    return model


def read_source(initial: Initial, config: Config, device: torch.device) -> torch.nn.Module:
    """The model of a run that begins, with the weights of its source. raises ConfigError with what is wrong with them"""
    began = time.monotonic()
    log.info("reading the initial weights from %s", initial.source.folder)
    check_bytes(initial.source)
    model, digest = load_source(
        initial.source,
        initial.made.config,
        rows=initial.rows,
        seed=config.seed,
        device=device,
        gradient_checkpointing=config.model.gradient_checkpointing,
    )
    model.initial = {**initial.facts, "digest": digest}
    seconds = duration(time.monotonic() - began)
    log.info(
        "the weights begin from %s: digest %s, stored in %s; read in %s",
        initial.source.name,
        digest,
        initial.source.dtype,
        seconds,
    )
    if number := initial.source.narrowed:
        log.warning(f"{numbered(number, 'tensor')} of {initial.source.name} are stored in fp64, and were read as fp32")
    for words in remarks(initial.facts):
        log.info(words)
    if initial.likeness and initial.likeness.words:
        (warn_once_per_machine if initial.likeness.is_warning else log.info)(initial.likeness.words)
    return model


def remarks(facts: Mapping[str, Any]) -> Sequence[str]:
    """What a person should know of how a model differs from its source, by the `initial` of a manifest."""
    words = []
    if changed := facts["changed"]:
        pairs = (f"{key} {json.dumps(before)} -> {json.dumps(now)}" for key, (before, now) in changed.items())
        words.append(f"the model is not as {facts['source']}: {', '.join(pairs)}")
    if added := facts["rows_added"]:
        had = facts["vocab_size"]
        words.append(
            f"{numbered(added, 'row')} added to the {had:,} of embedding and head, near the mean of the old ones"
        )
    return words
