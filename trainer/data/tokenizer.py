"""Tokenizers by name, and those that are vocabularies of byte-level BPE alone; what every tokenizer can is in tokens.py.

Such a vocabulary is a dict of ranks (embedded in the package, or a `.tiktoken` file), GPT-2's splitting pattern, and one special token
`<|endoftext|>` after the last rank. Those of the Hugging Face world are opened by hugging_face.py. Text never encodes to a special
token, whatever it spells. Nothing here needs a network, but a name `hf:NAME` that the cache of the hub has not got.
"""

import functools
import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from trainer import hub
from trainer import text as words
from trainer.data import assets, bpe
from trainer.data.byte_pairs import BytePairs
from trainer.data.tokens import REPLACEMENT, Tokenizer, well_formed
from trainer.errors import DataError

# source: Radford et al. 2019, written with possessive quantifiers: the same pieces, and no backtracking on long runs
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
END_OF_TEXT = "<|endoftext|>"
NAMES = ("bytes", "gpt2", "shakespeare")

PORTION_CHARACTERS = 1 << 20  # characters encoded at a time
# A single newline between two visible characters is a piece of its own under the pattern, at the end of a text as well
# as inside it: cutting behind one gives the same ids as not cutting.
_SAFE_CUT = re.compile(r"(?<=\S)\n(?=\S)")


@dataclass(frozen=True, kw_only=True)
class RanksTokenizer(Tokenizer):
    """A vocabulary of byte-level BPE with one special token, whose fingerprint is that of ranks, pattern and special token."""

    ranks: dict[bytes, int] = field(repr=False, compare=False)
    """The bytes of each token -> its id, without the special token."""
    pattern: str

    @property
    def specials(self) -> Mapping[str, int]:
        return {END_OF_TEXT: self.eot_id}

    @property
    def way(self) -> str:
        return "encodes by tiktoken"

    @functools.cached_property
    def _byte_pairs(self) -> BytePairs:
        return BytePairs(self.ranks, self.pattern)

    @functools.cached_property
    def _token_bytes(self) -> list[bytes]:
        table = [REPLACEMENT] * self.vocab_size
        for token, rank in self.ranks.items():
            table[rank] = token
        table[self.eot_id] = END_OF_TEXT.encode()
        return table

    @functools.cached_property
    def byte_lengths(self) -> np.ndarray:
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for token, rank in self.ranks.items():
            lengths[rank] = len(token)
        return lengths

    def encode_array(self, text: str) -> np.ndarray:
        if len(text) <= PORTION_CHARACTERS:
            return self._byte_pairs.encode(well_formed(text))
        return np.concatenate([self._byte_pairs.encode(well_formed(portion)) for portion in _portions(text)])

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return self._byte_pairs.encode_batch([*map(well_formed, texts)])


def _portions(text: str) -> Iterable[str]:
    start = 0
    while len(text) - start > PORTION_CHARACTERS:
        cut = _SAFE_CUT.search(text, start + PORTION_CHARACTERS)
        end = cut.end() if cut else len(text)
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def load_tokenizer(name: str, *, separator: str | None = None, begins_with_bos: bool | None = None) -> Tokenizer:
    """A tokenizer by name (`gpt2`, `shakespeare`, `bytes`), or by the path of a `.tiktoken` file, of a folder or a file of a Hugging
    Face tokenizer, of a SentencePiece `.model`, or `hf:NAME[@REVISION]`, which alone may ask the network.

    separator        the special token that stands before each document; None: the one that ends texts, as its files tell
    begins_with_bos  whether its bos stands before each document too; None: where its files put it before a text
    raises           DataError for an unknown name, a missing file, or what is not a tokenizer; HubError as `hub.resolve` does
    """
    if name in NAMES or name.endswith(".tiktoken"):
        if separator not in (None, END_OF_TEXT) or begins_with_bos:
            raise DataError(
                f"the tokenizer {name} has the one special token {END_OF_TEXT}, and {separator or 'a bos'} was asked for; leave it out"
            )
        return _embedded_tokenizer(name) if name in NAMES else _file_tokenizer(name)
    from trainer.data.hugging_face import open_hugging_face  # here, since it opens tokenizers by transformers

    if hub.is_hub_name(name):
        return open_hugging_face(hub.resolve(name).path, separator, begins_with_bos)
    path = Path(os.path.expanduser(name)).resolve()
    if not path.exists():
        raise DataError(
            f"unknown tokenizer {name!r}: {words.did_you_mean(name, NAMES)} A vocabulary of your own is given by the path of its .tiktoken "
            f"file, a tokenizer of Hugging Face by that of its folder or by hf:NAME; there is no {path}."
        )
    return open_hugging_face(path, separator, begins_with_bos)


@functools.cache
def _embedded_tokenizer(name: str) -> Tokenizer:
    if name == "bytes":
        return _build(name, {bytes([byte]): byte for byte in range(256)})
    return _build(name, bpe.parse_tiktoken(assets.read_asset(f"{name}.tiktoken.xz"), f"the embedded vocabulary {name}"))


def _file_tokenizer(name: str) -> Tokenizer:
    path = Path(os.path.expanduser(name)).resolve()
    try:
        status = path.stat()
    except OSError:
        raise DataError(f"tokenizer {name!r}: there is no file {path}. Name an existing .tiktoken file.") from None
    return _read_file(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=4)
def _read_file(path: Path, mtime_ns: int, num_bytes: int) -> Tokenizer:
    # The time and size are part of the key only: a file that was written again is read again.
    return _build(path.stem, bpe.parse_tiktoken(path.read_bytes(), str(path)), str(path))


def _build(name: str, ranks: dict[bytes, int], source: str | None = None) -> Tokenizer:
    eot_id = max(ranks.values()) + 1
    digest = hashlib.sha256(f"{GPT2_PATTERN}\n{END_OF_TEXT} {eot_id}\n".encode())
    digest.update(bpe.tiktoken_lines(ranks))
    return RanksTokenizer(
        name=name,
        ranks=ranks,
        pattern=GPT2_PATTERN,
        eot_id=eot_id,
        bos_id=eot_id,
        eos_id=eot_id,
        pad_id=eot_id,
        vocab_size=eot_id + 1,
        sha256=digest.hexdigest(),
        source=source or name,
    )
