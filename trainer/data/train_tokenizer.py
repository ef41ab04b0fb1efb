"""A tokenizer of one's own: byte-level BPE, trained by `tokenizers` on text, written as a folder that AutoTokenizer opens.

The merges are a function of the text alone. Pairs are counted over all of it, and of pairs that stand there equally often the one of
the lowest ids is merged first: neither the order of the documents nor the number of threads has a part in it.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainer import files, text
from trainer.byte_level import tokenizer_config
from trainer.data.prepare import disk_errors
from trainer.data.sources import documents, open_source
from trainer.data.text_sample import TextSample, sample
from trainer.data.texts import each_file_once
from trainer.data.tokenizer import END_OF_TEXT
from trainer.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

logger = logging.getLogger(__name__)

PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""What cuts a text into pieces that no token reaches across. source: Llama 3's tokenizer.json; numbers in at most three digits"""
MAX_SAMPLE_BYTES = 512 << 20
"""Of text that is trained on by default: its distinct pieces take some GB of memory."""
_LEAST_OFTEN = 2
"""A pair that stands there once is no word."""


@dataclass(frozen=True)
class TrainedTokenizer:
    """What came of it."""

    folder: Path
    vocab_size: int
    sample_bytes: int
    """Of text that it was trained on."""
    text_bytes: int
    """Of text that was there."""
    seconds: float


def train_tokenizer(
    sources: Sequence[str],
    out: Path,
    vocab_size: int,
    *,
    specials: Sequence[str] = (),
    max_sample_bytes: int = MAX_SAMPLE_BYTES,
    text_key: str | None = None,
    suffixes: Sequence[str] = (),
    skip_unreadable: bool = False,
    progress: Callable[[int], None] = lambda num_bytes: None,
) -> TrainedTokenizer:
    """Trains a tokenizer on the text of some sources, and writes tokenizer.json and tokenizer_config.json into the new folder `out`.

    vocab_size        ids that it has in the end: 256 bytes, what was merged, `<|endoftext|>`, then `specials` in their order
    max_sample_bytes  of text that is trained on; of more a sample is taken, by a hash of the text
    text_key, suffixes, skip_unreadable   as of `open_source` and `documents`
    progress          hears how many bytes of text were read
    raises            DataError when the text has not enough words for so many ids, a source cannot be read, or `out` has content
    """
    started = time.monotonic()
    names = [END_OF_TEXT, *specials]
    _check_arguments(sources, out, vocab_size, names, max_sample_bytes)
    opened = each_file_once([open_source(name, suffixes=suffixes, skip_unreadable=skip_unreadable) for name in sources])
    texts = (document for source in opened for document in documents(source, text_key))
    taken = sample(_counted(texts, progress), max_sample_bytes)
    if not taken.is_whole:
        logger.info(
            "trained on a sample: %s of %s of text, portions chosen by a hash of theirs, so that the same text gives the same tokenizer",
            text.size(taken.num_bytes),
            text.size(taken.total_bytes),
        )
    trained = _trained(taken, vocab_size, names)
    _write(trained, out)
    return TrainedTokenizer(out, vocab_size, taken.num_bytes, taken.total_bytes, time.monotonic() - started)


def _check_arguments(
    sources: Sequence[str], out: Path, vocab_size: int, specials: Sequence[str], max_sample_bytes: int
) -> None:
    if not sources:
        raise DataError("no sources are named; name files, folders, patterns, hf:NAME, or embedded:shakespeare")
    if vocab_size <= (least := 256 + len(specials)):
        raise DataError(
            f"--vocab-size is {vocab_size:,}, and {least} ids are those of the 256 bytes and of {', '.join(specials)}; take more, such as 32768"
        )
    if repeated := [name for name in specials if not name.strip() or specials.count(name) > 1]:
        raise DataError(f"--special {repeated[0]!r} is empty or named twice; name each special token once")
    if max_sample_bytes < 1:
        raise DataError(f"--sample-bytes is {max_sample_bytes}; 1 or more was expected")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(
            f"{out} exists and is not an empty folder; a tokenizer replaces nothing: name another --out, or remove it"
        )


def _counted(texts: Iterable[str], progress: Callable[[int], None]) -> Iterator[str]:
    num_bytes, told = 0, 0
    for document in texts:
        num_bytes += len(document.encode("utf-8", "surrogatepass"))
        if num_bytes - told >= 16 << 20:
            progress(num_bytes)
            told = num_bytes
        yield document


def _trained(taken: TextSample, vocab_size: int, specials: Sequence[str]) -> "Tokenizer":
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, letters])
    tokenizer.decoder = decoders.ByteLevel()
    merges = trainers.BpeTrainer(
        vocab_size=vocab_size - len(specials),
        min_frequency=_LEAST_OFTEN,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((portion.decode() for portion in taken.portions), merges)
    if words := [name for name in specials if tokenizer.token_to_id(name) is not None]:
        raise DataError(
            f"--special {words[0]!r} is a word of the text, and has an id already; give it a form that no text has, such as <|{words[0].strip('<|>')}|>"
        )
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in specials])
    if (found := tokenizer.get_vocab_size(with_added_tokens=True)) < vocab_size:
        raise DataError(
            f"the sources ({text.size(taken.num_bytes)} of text) have words for {found:,} ids, and --vocab-size is {vocab_size:,}; name more text, "
            f"or take --vocab-size {found}"
        )
    return tokenizer


def _write(tokenizer: "Tokenizer", out: Path) -> None:
    staging = out.with_name(f".staging-{out.name}-{os.getpid()}")
    with disk_errors(out):
        try:
            staging.mkdir(parents=True)
            files.write_atomic(staging / "tokenizer.json", tokenizer.to_str(pretty=True))
            files.write_atomic(
                staging / "tokenizer_config.json", json.dumps(tokenizer_config(END_OF_TEXT), indent=2) + "\n"
            )
            if out.exists():
                out.rmdir()
            files.commit_folder(staging, out)
        finally:
            if staging.exists():
                files.remove_folder(staging)
