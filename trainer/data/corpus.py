"""The tokens a run trains on and those it is judged by: an embedded corpus, a prepared folder, or shards already on disk."""

import logging
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from trainer import files
from trainer.config.folders import command_line
from trainer.config.schema import Config, DataConfig
from trainer.data.embedded_corpus import EMBEDDED, prepare_embedded
from trainer.data.manifest import missing_shards, read_manifest, repeats_text
from trainer.data.shards import TokenDataset, held_out_beside, is_held_out_name, resolve_shards
from trainer.data.tokenizer import NAMES, Tokenizer, load_tokenizer
from trainer.errors import DataError
from trainer.text import did_you_mean

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Corpus:
    """Training and held-out sequences of one vocabulary."""

    train: TokenDataset
    validation: TokenDataset | None
    tokenizer: Tokenizer | None
    """None for shards whose tokenizer is not at hand: no text can be shown then."""
    vocab_size: int
    """Number of token ids."""
    baselines: dict[str, float] | None
    """Validation loss of the unigram and the bigram model, nats per token, where the corpus's manifest has them."""

    def validation_bytes(self, num_sequences: int | None) -> int | None:
        """Bytes of text that the targets of the first `num_sequences` held-out sequences stand for; None without a tokenizer."""
        if self.validation is None or self.tokenizer is None:
            return None
        return label_bytes(self.validation, self.tokenizer, num_sequences)


@lru_cache
def label_bytes(dataset: TokenDataset, tokenizer: Tokenizer, num_sequences: int | None) -> int:
    """Bytes of text that the targets of the first `num_sequences` sequences stand for."""
    total = dataset.num_sequences if num_sequences is None else min(num_sequences, dataset.num_sequences)
    blocks = (np.arange(first, min(first + 1024, total), dtype=np.int64) for first in range(0, total, 1024))
    return sum(tokenizer.num_bytes(dataset.sequences(block)[:, 1:]) for block in blocks)


def corpus_folder(data: DataConfig) -> Path:
    """The folder of `data.corpus`: the person's own, or where an embedded corpus is tokenized to."""
    if data.corpus in EMBEDDED:
        return files.project_folder() / ".data" / f"{data.corpus}-{load_tokenizer(data.tokenizer or data.corpus).name}"
    return files.project_folder() / str(data.corpus)


def known_baselines(data: DataConfig) -> dict[str, float] | None:
    """Unigram and bigram losses that the corpus's manifest states; None where there is none."""
    manifest = read_manifest(corpus_folder(data)) if data.corpus else None
    return manifest.get("baselines") if manifest else None


def open_corpus(data: DataConfig, sequence_length: int) -> Corpus:
    """Opens what a recipe's `data` section names; DataError says what is missing or does not fit."""
    if not data.corpus:
        tokenizer = load_tokenizer(data.tokenizer) if data.tokenizer else None
        return _open(data, sequence_length, data.train, data.validation, tokenizer, None)
    folder = corpus_folder(data)
    if data.corpus in EMBEDDED:
        prepare_embedded(data.corpus, data.tokenizer or data.corpus, folder.parent)
    manifest = read_manifest(folder) if folder.is_dir() else None
    if manifest is None:
        raise DataError(
            f"data.corpus {data.corpus!r} is neither an embedded corpus ({did_you_mean(data.corpus, EMBEDDED)}) nor a folder that "
            f"`trainer prepare` wrote ({folder} has no manifest.json); run: "
            f"{command_line('prepare', 'SOURCE...', '--out', str(folder), '--tokenizer', 'gpt2')}   or, to see the recipe run at once: data.corpus=shakespeare data.tokenizer=gpt2"
        )
    if data.tokenizer and load_tokenizer(data.tokenizer).sha256 != manifest["tokenizer_sha256"]:
        raise DataError(
            f"data.tokenizer is {data.tokenizer}, but {folder} was prepared with {manifest['tokenizer']}; leave data.tokenizer out, or "
            f"prepare the corpus again with --tokenizer {data.tokenizer}"
        )
    tokenizer = load_tokenizer(manifest["tokenizer"])
    if tokenizer.sha256 != manifest["tokenizer_sha256"]:
        raise DataError(
            f"{folder} was prepared with another {tokenizer.name} tokenizer than this one (sha256 {manifest['tokenizer_sha256'][:12]}, "
            f"not {tokenizer.sha256[:12]}); prepare the corpus again"
        )
    if problems := missing_shards(folder, manifest):
        raise DataError(
            f"{folder} is not what was prepared: {'; '.join(problems)}; copy the folder again, or prepare the corpus again"
        )
    train, validation = (
        [str(folder / shard["file"]) for shard in manifest["shards"] if shard["split"] == split]
        for split in ("train", "validation")
    )
    return _open(data, sequence_length, train, validation, tokenizer, manifest.get("baselines"))


def count_sequences(config: Config) -> int:
    """How many training sequences a config's data has: what an epoch of `max_epochs` is; raises DataError as `open_corpus` does."""
    return open_corpus(config.data, config.sequence_length).train.num_sequences


def _open(
    data: DataConfig,
    sequence_length: int,
    train: list[str],
    validation: list[str],
    tokenizer: Tokenizer | None,
    baselines: dict[str, float] | None,
) -> Corpus:
    vocab_size = data.vocab_size or (tokenizer.vocab_size if tokenizer else 0)  # the schema asks for one of the two
    if tokenizer and vocab_size < tokenizer.vocab_size:
        raise DataError(
            f"data.vocab_size {vocab_size} is smaller than the {tokenizer.vocab_size} entries of the tokenizer {tokenizer.name}; leave it out"
        )

    def dataset(patterns: list[str], split: Literal["train", "validation"]) -> TokenDataset:
        try:
            paths = resolve_shards(patterns, files.project_folder(), split, skip_unreadable=data.skip_unreadable)
            return TokenDataset(paths, sequence_length=sequence_length, vocab_size=vocab_size, dtype=data.dtype)
        except DataError as error:
            if f"{split} shards" in str(error):
                raise
            more = ""
            if data.corpus and split == "validation":
                more = " Or hold out more: prepare it with --validation-fraction 0.05, or --validation SOURCE."
            raise DataError(f"{'training' if split == 'train' else split} data: {error}{more}") from None

    trained_on, held_out = dataset(train, "train"), dataset(validation, "validation") if validation else None
    if held_out:
        for words in (*_repeats(trained_on, held_out), *shared(trained_on, held_out)):
            log.warning(words)
    elif beside := held_out_beside(train, files.project_folder()):
        left = f"{len(beside)} shards are left out, since their names say that they are held out (e.g. {beside[0]})"
        remedy = "name them there, or as files in data.train"
        log.warning("training data: %s, and data.validation names none; %s", left, remedy)
    return Corpus(trained_on, held_out, tokenizer, vocab_size, baselines)


def held_out_shards(where: str, base: Path, trained_with: str | None, *, whole_if_none: bool = True) -> list[Path]:
    """The held-out shards of an embedded corpus, of a folder that `trainer prepare` wrote, or of shards in the forms of data.validation.

    base           where a relative path or pattern is meant from
    trained_with   sha256 of the tokenizer that the model knows; None: not known
    whole_if_none  a folder that has none that is called so is held out as a whole; a model's own corpus never is
    raises         DataError when there are no shards, or they were made with another tokenizer
    """
    folder = base / where
    if where in EMBEDDED and not folder.exists():
        name = next((name for name in NAMES if load_tokenizer(name).sha256 == trained_with), where)
        folder = prepare_embedded(where, name, files.project_folder() / ".data")
    manifest = read_manifest(folder) if folder.is_dir() else None
    if manifest is None:
        found = resolve_shards([where], base)
        return [path for path in found if is_held_out_name(path)] or found
    if trained_with and manifest["tokenizer_sha256"] != trained_with:
        raise DataError(
            f"{folder} was prepared with the tokenizer {manifest['tokenizer']} (sha256 {manifest['tokenizer_sha256'][:12]}), and the model was "
            f"trained with another ({trained_with[:12]}); prepare the text again with the model's"
        )
    if problems := missing_shards(folder, manifest):
        raise DataError(
            f"{folder} is not what was prepared: {'; '.join(problems)}; copy the folder again, or prepare the corpus again"
        )
    names = [shard["file"] for shard in manifest["shards"] if shard["split"] == "validation"]
    if not names and not whole_if_none:
        raise DataError(
            f"{folder} has no text that is held out: all of it was trained on; name other text with --data FOLDER, or prepare it with --validation "
            "SOURCE or --validation-fraction 0.005"
        )
    return [folder / name for name in names or [shard["file"] for shard in manifest["shards"]]]


def trained_on_too(data: DataConfig, sequence_length: int, held_out: TokenDataset) -> list[str]:
    """How much of some text a run of this `data` section is trained on, as `shared` says it; nothing where its data is no longer there."""
    try:
        train = open_corpus(data, sequence_length).train
    except DataError:
        return []
    return shared(train, held_out)


def _repeats(train: TokenDataset, validation: TokenDataset) -> list[str]:
    """What the manifests of folders that both sides come from say of held-out text that is trained on."""
    found = []
    folders, held_out = ({shard.path.parent for shard in side.shards} for side in (train, validation))
    for folder in sorted(folders & held_out):
        try:
            manifest = read_manifest(folder)
        except DataError:
            continue  # somebody else's manifest.json, beside shards that do not need one
        if manifest and (words := repeats_text(manifest, "held_out_in_train")):
            found.append(f"{folder}: {words}")
    return found


def shared(train: TokenDataset, validation: TokenDataset) -> list[str]:
    """How much of the held-out data is trained on, as far as whole shards tell, in one sentence: by their content; nothing where none is."""
    sizes = {shard.num_tokens for shard in train.shards} & {shard.num_tokens for shard in validation.shards}
    if not sizes:
        return []
    by_content = dict(zip(train.contents(), train.shards, strict=True))
    held_out = zip(validation.shards, validation.contents(), strict=True)
    same = [(shard, by_content[content]) for shard, content in held_out if content in by_content]
    if not same:
        return []
    num_tokens = sum(shard.num_tokens for shard, _ in same)
    share = f"{num_tokens:,} of {validation.num_tokens:,} tokens, {num_tokens / validation.num_tokens:.0%}"
    too = f"{len(same)} of {len(validation.shards)} shards ({share}) are trained on too"
    example = f"e.g. {same[0][0].path} is {same[0][1].path}"
    return [f"validation data: {too}, {example}: the validation loss is too low; name other shards to validate on"]
