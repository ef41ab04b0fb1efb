"""What a tokenizer is, and how much of a text each of its tokens stands for: several side by side."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trainer import text
from trainer.data.encode import batches
from trainer.data.sources import documents, open_source
from trainer.data.tokens import Tokenizer
from trainer.errors import DataError

logger = logging.getLogger(__name__)

MAX_TEXT_BYTES = 64 << 20
"""Of a text to try tokenizers on."""
SHOWN_SPECIALS = 12
"""Of the special tokens of one; the others are counted."""


@dataclass(frozen=True)
class Fit:
    """How a tokenizer does on a text."""

    text_bytes: int
    num_tokens: int
    """Without those that stand before documents."""
    used_ids: int
    """Different ones."""

    @property
    def bytes_per_token(self) -> float:
        return self.text_bytes / self.num_tokens


@dataclass(frozen=True)
class Described:
    """A tokenizer, in plain values."""

    name: str
    """As it was asked for."""
    vocab_size: int
    separator: str
    """What stands before each document; roles are tokens as text, None where there is none."""
    bos: str | None
    eos: str | None
    pad: str | None
    begins_with_bos: bool
    specials: Mapping[str, int]
    way: str
    """How it encodes a corpus."""
    sha256: str
    fits: Mapping[str, Fit]
    """By the name of the text."""

    def as_json(self) -> dict[str, Any]:
        fits = {name: {**asdict(fit), "bytes_per_token": fit.bytes_per_token} for name, fit in self.fits.items()}
        return {**asdict(self), "fits": fits}


def read_text(source: str, text_key: str | None = None) -> list[str]:
    """The documents of a text to try tokenizers on, in the forms of `open_source`; of a long one its beginning, which is logged.

    raises  DataError when it cannot be read, or is empty
    """
    found: list[str] = []
    num_bytes = 0
    for document in documents(open_source(source), text_key):
        found.append(document)
        num_bytes += len(document.encode("utf-8", "replace"))
        if num_bytes > MAX_TEXT_BYTES:
            logger.info("%s: tokenizers are tried on its first %s", source, text.size(num_bytes))
            break
    if not found:
        raise DataError(f"--text {source} holds no text; name a file with some")
    return found


def describe(name: str, tokenizer: Tokenizer, texts: Mapping[str, Sequence[str]]) -> Described:
    """What is known of a tokenizer; `texts` has the documents of each text by its name, of at least one character."""

    def shown(id: int | None) -> str | None:
        return None if id is None else tokenizer.decode([id])

    return Described(
        name,
        tokenizer.vocab_size,
        tokenizer.decode([tokenizer.eot_id]),
        shown(tokenizer.bos_id),
        shown(tokenizer.eos_id),
        shown(tokenizer.pad_id),
        tokenizer.begins_with_bos,
        dict(sorted(tokenizer.specials.items(), key=lambda item: item[1])),
        tokenizer.way,
        tokenizer.sha256,
        {name: _fit(tokenizer, documents) for name, documents in texts.items()},
    )


def side_by_side(described: Sequence[Described]) -> str:
    """A table with a column for each, then what does not fit into one."""
    rows: list[list[object]] = [["", *(each.name for each in described)]]
    rows.append(["ids", *(f"{each.vocab_size:,}" for each in described)])
    rows.append(["between documents", *(_between(each) for each in described)])
    rows += [[role, *(getattr(each, role) or "none" for each in described)] for role in ("bos", "eos", "pad")]
    rows.append(["special tokens", *(len(each.specials) for each in described)])
    for name, fit in described[0].fits.items():
        each_fit = [each.fits[name] for each in described]
        rows.append([f"{name} ({text.size(fit.text_bytes)})", *("" for _ in described)])
        rows.append(["  bytes per token", *(f"{fit.bytes_per_token:.3f}" for fit in each_fit)])
        rows.append(["  tokens", *(f"{fit.num_tokens:,}" for fit in each_fit)])
        rows.append(["  ids that occur", *(f"{fit.used_ids:,}" for fit in each_fit)])
    notes = [f"{each.name} {each.way}; special: {_specials(each.specials)}" for each in described]
    return "\n".join([text.table(rows, indent=""), "", *notes])


def _between(each: Described) -> str:
    return f"{each.separator} {each.bos}" if each.begins_with_bos and each.bos != each.separator else each.separator


def _specials(specials: Mapping[str, int]) -> str:
    named = [f"{token} {id}" for token, id in specials.items()]
    more = len(named) - SHOWN_SPECIALS
    return ", ".join(named[:SHOWN_SPECIALS]) + (f" and {more:,} more" if more > 0 else "")


def _fit(tokenizer: Tokenizer, documents: Iterable[str]) -> Fit:
    num_bytes, num_tokens, used = 0, 0, set[int]()
    for batch in batches((None, document) for document in documents):
        texts = [document for _, document in batch]
        num_bytes += sum(len(document.encode("utf-8", "replace")) for document in texts)
        for ids in tokenizer.encode_batch(texts):
            num_tokens += ids.size
            used.update(ids.tolist())
    return Fit(num_bytes, num_tokens, len(used))
