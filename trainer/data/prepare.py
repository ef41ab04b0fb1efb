"""From text to a folder of shards: tokenize, split off validation documents, write, and sign with a manifest.

    documents --batches of 1 MB--> threads that encode --in order--> a writer a split --> NAME_train_000001.bin ...

Every document begins with the tokenizer's separator, such as `<|endoftext|>`; documents run on across the ends of shards (llm.c's way). What is written
depends on the request alone: neither on the number of workers, nor on their speed.
"""

import errno
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from trainer import files, locks, text
from trainer.data.baselines import unigram_bigram
from trainer.data.bpe import tiktoken_lines
from trainer.data.encode import EncodedBatch, Labelled, encode_in_threads
from trainer.data.hold_out import HoldOut
from trainer.data.hub_datasets import at_commit
from trainer.data.hugging_face import keep
from trainer.data.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    TOKENIZER,
    VOCABULARY,
    missing_shards,
    read_manifest,
    repeats,
    repeats_text,
)
from trainer.data.shards import dtype_for, open_shard
from trainer.data.sources import Source, estimated_text_bytes, open_source, source_identity
from trainer.data.split_writer import SplitWriter
from trainer.data.texts import each_file_once, labelled, measured
from trainer.data.tokenizer import NAMES, RanksTokenizer, Tokenizer, load_tokenizer
from trainer.errors import DataError

logger = logging.getLogger(__name__)

_MAX_BASELINE_TOKENS = 50_000_000  # counting pairs takes some 30 bytes per token
_MARKER = ".preparing"
_SPLITS = {"train": ("train", 1), "validation": ("val", 0)}  # as shards are named, and the number of the first


Progress = Callable[[int, int], None]
"""Called with documents and tokens so far."""


@dataclass(frozen=True)
class PrepareReport:
    """What `prepare` left in a folder; `reused` says that it was there already."""

    train_documents: int
    train_tokens: int
    validation_documents: int
    validation_tokens: int
    bytes_per_token: float
    seconds: float
    reused: bool
    repeats: tuple[str, ...]
    """What is held out and trained on too, or stands there more than once: each as a sentence."""


def prepare(
    sources: Sequence[str],
    out: Path,
    tokenizer: str | Tokenizer,
    *,
    text_key: str | None = None,
    validation_fraction: float = 0.005,
    validation_sources: Sequence[str] = (),
    suffixes: Sequence[str] = (),
    skip_unreadable: bool = False,
    tokens_per_shard: int = 100_000_000,
    num_workers: int | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> PrepareReport:
    """Tokenizes sources into shards and a manifest in `out`.

    tokenizer            opened, or what `load_tokenizer` finds it by
    validation_fraction  share of the text held out, at least one document or the end of one, chosen by a hash of their text:
                         whatever their order, and the same text is never on both sides. Not used with validation_sources
    suffixes, skip_unreadable  as of `open_source`
    num_workers          threads that encode; None takes every core allowed
    name                 what the shards' names begin with; None takes the folder's name
    progress             called with documents and tokens so far, batch by batch
    raises               DataError for a wrong argument or source, a folder that holds something else, and a full disk

    The same request on a finished folder returns at once. What a killed attempt left is written again.
    """
    started, out = time.monotonic(), Path(out)
    _check_arguments(sources, validation_fraction, tokens_per_shard, num_workers)
    chosen = load_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer
    name = name or re.sub(r"[^\w\-]", "-", out.resolve().name)
    find = partial(open_source, suffixes=suffixes, skip_unreadable=skip_unreadable)
    opened, held = ([find(name) for name in _at_commits(names, out)] for names in (sources, validation_sources))
    request = {
        "sources": [source_identity(source) for source in opened],
        "validation_sources": [source_identity(source) for source in held],
        "validation_fraction": None if validation_sources else validation_fraction,
        "text_key": text_key,
        "tokens_per_shard": tokens_per_shard,
        "tokenizer_sha256": chosen.sha256,
        "name": name,
        **({"begin_ids": [*chosen.begin_ids]} if chosen.files else {}),
        **{key: value for key, value in (("suffixes", list(suffixes)), ("skip_unreadable", skip_unreadable)) if value},
    }
    if finished := _finished(out, request):
        return _report(finished, started, reused=True)
    _check_space(out, [*opened, *held], chosen)
    logger.info("the tokenizer %s %s", chosen.source, chosen.way)  # before threads, which would all look for the way
    rule, texts = _divided(each_file_once(opened), each_file_once(held), text_key, validation_fraction, progress)
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        with _claimed(out):
            _remove_leftovers(out)
            num_threads = num_workers or len(os.sched_getaffinity(0))
            batches = encode_in_threads(texts, chosen, rule, num_threads)
            splits = _write_splits(batches, out, name, tokens_per_shard, chosen, progress)
            manifest = write_manifest(out, name, chosen, splits, request, num_threads)
            (out / _MARKER).unlink()
    return _report(manifest, started, reused=False)


def _check_arguments(
    sources: Sequence[str], validation_fraction: float, tokens_per_shard: int, num_workers: int | None
) -> None:
    if not sources:
        raise DataError("no sources are named. Name files, folders, globs, hf:NAME, or embedded:shakespeare.")
    if not 0 <= validation_fraction < 1:
        raise DataError(f"validation_fraction is {validation_fraction}; a share from 0 to below 1 was expected.")
    if not 1 <= tokens_per_shard < 2**31:
        raise DataError(f"tokens_per_shard is {tokens_per_shard}; from 1 to 2,147,483,647 was expected.")
    if num_workers is not None and num_workers < 1:
        raise DataError(f"num_workers is {num_workers}; 1 or more was expected.")


def _at_commits(sources: Sequence[str], out: Path) -> list[str]:
    """The sources, those of the hub with their commits: the ones that a finished folder was made of, where it was made of these names."""
    request = (read_manifest(out) or {"request": {}})["request"]
    known = [identity[0] for key in ("sources", "validation_sources") for identity in request.get(key, [])]
    return [at_commit(source, known) for source in sources]


def _finished(out: Path, request: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of a folder that holds the answer to this request already; DataError when it holds another's."""
    manifest = read_manifest(out)
    if manifest is None:
        return None
    found = manifest["request"]
    different = [key for key in {**request, **found} if found.get(key) != request.get(key)]
    if different:
        raise DataError(
            f"{out} already holds the corpus {manifest['name']!r}, which was made with another {', '.join(different)}. "
            "Choose another --out, or remove the folder."
        )
    problems = missing_shards(out, manifest)
    if problems:
        raise DataError(f"{out} holds this corpus, but {'; '.join(problems)}. Remove the folder and prepare it again.")
    return manifest


def _divided(
    sources: Sequence[Source], held: Sequence[Source], text_key: str | None, fraction: float, progress: Progress | None
) -> tuple[HoldOut, Iterator[Labelled]]:
    """All documents, with the split they belong to where other sources are held out, or the rule that decides it."""
    if not held:
        return measured(sources, text_key, fraction, progress)
    return HoldOut(), chain(labelled(sources, "train", text_key), labelled(held, "validation", text_key))


def _check_space(out: Path, sources: Sequence[Source], tokenizer: Tokenizer) -> None:
    text_bytes = sum(estimated_text_bytes(source) for source in sources)
    # A token of a trained vocabulary stands for three bytes and more; a byte vocabulary's for one.
    bytes_a_token = 1 if tokenizer.vocab_size < 1024 else 3
    needed = text_bytes // bytes_a_token * np.dtype(dtype_for(tokenizer.vocab_size)).itemsize
    free = files.free_bytes(out)
    if needed > free:
        raise DataError(
            f"about {text.size(text_bytes)} of text make about {text.size(needed)} of shards, and {text.size(free)} "
            f"are free at {out}. Free some space or choose another --out."
        )


@contextmanager
def disk_errors(out: Path) -> Iterator[None]:
    """Says in a DataError why a folder cannot be written."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise
        raise DataError(f"{out} cannot be written: {error.strerror}. Mend that, or choose another folder.") from None


@contextmanager
def _claimed(out: Path) -> Iterator[None]:
    """Marks a folder as being prepared, which tells our unfinished shards from someone's own; one process at a time."""
    shards = sorted(path.name for path in out.glob("*.bin"))
    if shards and not (out / _MARKER).exists():
        raise DataError(
            f"{out} holds {shards[0]} and has no {MANIFEST}: these shards were not made by `trainer prepare`, and "
            "it does not mix its own with them. Choose another --out."
        )
    held = locks.take(out / _MARKER)
    if held is None:
        raise DataError(f"another process is preparing {out} now. Wait for it, or choose another --out.")
    with held:
        yield


def _remove_leftovers(out: Path) -> None:
    """Removes what a killed attempt wrote: it may have had more shards than this one will."""
    leftovers = [*out.glob("*.bin"), *out.glob(".*.partial-*")]
    if leftovers:
        logger.info("%s: %d files of an unfinished attempt are written again", out, len(leftovers))
    for path in leftovers:
        path.unlink()


def _write_splits(
    batches: Iterable[EncodedBatch], out: Path, name: str, size: int, tokenizer: Tokenizer, progress: Progress | None
) -> dict[str, SplitWriter]:
    """Writes the shards of both splits; `size` is the tokens of a shard."""
    writers = {
        split: SplitWriter(out, f"{name}_{word}_%06d.bin", first, size, tokenizer.vocab_size, tokenizer.eot_id)
        for split, (word, first) in _SPLITS.items()
    }
    with writers["train"], writers["validation"]:
        for encoded in batches:
            for split, texts in encoded.items():
                writers[split].write(texts)
            if progress:
                progress(sum(w.documents for w in writers.values()), sum(w.tokens for w in writers.values()))
    if writers["train"].tokens == 0:
        raise DataError("the sources hold no document for training. Name others, or lower validation_fraction.")
    if writers["validation"].tokens == 0:
        logger.warning("%s: no document fell to validation; name some, or raise validation_fraction", out)
    return writers


def write_manifest(
    out: Path,
    name: str,
    tokenizer: Tokenizer,
    splits: dict[str, SplitWriter],
    request: dict[str, Any],
    num_threads: int,
) -> dict[str, Any]:
    counts = ("documents", "tokens", "text_bytes", "surrogates")
    documents_, tokens, text_bytes, surrogates = (
        sum(getattr(each, what) for each in splits.values()) for what in counts
    )
    if surrogates:
        logger.warning(
            "%s: %s in the sources became U+FFFD, since UTF-8 cannot write it",
            out,
            text.numbered(surrogates, "lone surrogate"),
        )
    manifest = {
        "format_version": FORMAT_VERSION,
        "name": name,
        "tokenizer": _keep(tokenizer, out),
        "tokenizer_sha256": tokenizer.sha256,
        "vocab_size": tokenizer.vocab_size,
        "eot_id": tokenizer.eot_id,
        "eot_placement": "before",
        **({"begin_ids": [*tokenizer.begin_ids], "tokenizer_files": dict(tokenizer.files)} if tokenizer.files else {}),
        "dtype": dtype_for(tokenizer.vocab_size),
        "documents": documents_,
        "tokens": tokens,
        "text_bytes": text_bytes,
        "lone_surrogates": surrogates,
        "bytes_per_token": text_bytes / tokens,
        "splits": {split: writer.summary() for split, writer in splits.items()},
        "repeats": repeats(splits["train"].known(), splits["validation"].known()),
        "baselines": _baselines(out, splits, tokenizer.vocab_size, num_threads),
        "shards": [{"split": split, **shard} for split, writer in splits.items() for shard in writer.shards],
        "request": request,
    }
    files.write_atomic(out / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    return manifest


def _keep(tokenizer: Tokenizer, out: Path) -> str:
    """Copies into a corpus what its tokenizer is opened from, where that is not in the package; returns what the manifest calls it."""
    if isinstance(tokenizer, RanksTokenizer):
        if tokenizer.source in NAMES:
            return tokenizer.source
        files.write_atomic(out / VOCABULARY, tiktoken_lines(tokenizer.ranks))
        return VOCABULARY
    keep(tokenizer, out / TOKENIZER)
    return TOKENIZER


def _baselines(out: Path, splits: dict[str, SplitWriter], vocab_size: int, num_threads: int) -> dict[str, float] | None:
    if not splits["validation"].tokens or splits["train"].tokens > _MAX_BASELINE_TOKENS:
        return None

    def tokens(split: str) -> np.ndarray:
        return np.concatenate([open_shard(out / shard["file"]).tokens() for shard in splits[split].shards])

    found = unigram_bigram(tokens("train"), tokens("validation"), vocab_size, num_threads)
    return {"unigram": found.unigram, "bigram": found.bigram}


def _report(manifest: dict[str, Any], started: float, *, reused: bool) -> PrepareReport:
    train, validation = manifest["splits"]["train"], manifest["splits"]["validation"]
    sentences = (repeats_text(manifest, what) for what in ("held_out_in_train", "within_train"))
    return PrepareReport(
        train_documents=train["documents"],
        train_tokens=train["tokens"],
        validation_documents=validation["documents"],
        validation_tokens=validation["tokens"],
        bytes_per_token=manifest["bytes_per_token"],
        seconds=time.monotonic() - started,
        reused=reused,
        repeats=tuple(words for words in sentences if words),
    )
