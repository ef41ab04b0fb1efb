"""Text to token ids and back, by byte-level BPE that needs no network: the only user of tiktoken.

A tokenizer is a dict of ranks (embedded in the package, or a `.tiktoken` file), GPT-2's splitting pattern, and one
special token `<|endoftext|>` after the last rank. Text never encodes to that id, whatever it spells.
"""

import functools
import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tiktoken

from trainer import text as words
from trainer.data import assets, bpe
from trainer.errors import DataError

# source: Radford et al. 2019, written with possessive quantifiers: the same pieces, and no backtracking on long runs
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
END_OF_TEXT = "<|endoftext|>"
NAMES = ("bytes", "gpt2", "shakespeare")

PORTION_CHARACTERS = 1 << 20  # characters encoded at a time
# A single newline between two visible characters is a piece of its own under the pattern, at the end of a text as well
# as inside it: cutting behind one gives the same ids as not cutting.
_SAFE_CUT = re.compile(r"(?<=\S)\n(?=\S)")
_REPLACEMENT = "\ufffd".encode()


@dataclass(frozen=True)
class Tokenizer:
    """A byte-level BPE tokenizer with one special token.

    ranks       the bytes of each token -> its id, without the special token
    vocab_size  one more than the largest id, `eot_id` counted: the real size, not padded
    sha256      fingerprint of ranks, pattern and special token: equal fingerprints give equal ids
    source      what `load_tokenizer` finds it by again: its name, or the absolute path of its file
    """

    name: str
    ranks: dict[bytes, int] = field(repr=False, compare=False)
    pattern: str
    eot_id: int
    vocab_size: int
    sha256: str
    source: str = field(compare=False)

    @functools.cached_property
    def _encoding(self) -> tiktoken.Encoding:
        return tiktoken.Encoding(
            self.name, pat_str=self.pattern, mergeable_ranks=self.ranks, special_tokens={END_OF_TEXT: self.eot_id}
        )

    @functools.cached_property
    def _token_bytes(self) -> list[bytes]:
        table = [_REPLACEMENT] * self.vocab_size
        for token, rank in self.ranks.items():
            table[rank] = token
        table[self.eot_id] = END_OF_TEXT.encode()
        return table

    @functools.cached_property
    def byte_lengths(self) -> np.ndarray:
        """Bytes of text that each id stands for, [vocab_size] int64; 0 for `eot_id`."""
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for token, rank in self.ranks.items():
            lengths[rank] = len(token)
        return lengths

    def encode(self, text: str) -> list[int]:
        """The ids of a text. A literal "<|endoftext|>" in it is plain text, not the special token."""
        return self.encode_array(text).tolist()

    def encode_array(self, text: str) -> np.ndarray:
        """The same ids as `encode`, [n] uint32; releases the interpreter lock, so that threads encode side by side."""
        if len(text) <= PORTION_CHARACTERS:
            return self._encode_portion(text)
        return np.concatenate([self._encode_portion(portion) for portion in _portions(text)])

    def _encode_portion(self, text: str) -> np.ndarray:
        return self._encoding.encode_to_numpy(well_formed(text), disallowed_special=())

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of ids. An id outside the vocabulary, as a padded model may sample, becomes U+FFFD."""
        table, size = self._token_bytes, self.vocab_size
        return b"".join(table[i] if 0 <= i < size else _REPLACEMENT for i in ids)

    def num_bytes(self, ids: np.ndarray) -> int:
        """Bytes of text that ids of any shape stand for; `eot_id` and negative ids (labels left out) count 0."""
        ids = np.asarray(ids)
        if ids.dtype.kind == "i":
            ids = ids[ids >= 0]
        return int(self.byte_lengths[ids].sum())


def well_formed(text: str) -> str:
    """The text with lone surrogates, which UTF-8 cannot write but JSON can spell, replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _portions(text: str) -> Iterable[str]:
    start = 0
    while len(text) - start > PORTION_CHARACTERS:
        cut = _SAFE_CUT.search(text, start + PORTION_CHARACTERS)
        end = cut.end() if cut else len(text)
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def load_tokenizer(name: str) -> Tokenizer:
    """A tokenizer by name (`gpt2`, `shakespeare`, `bytes`) or by the path of a `.tiktoken` file; needs no network.

    raises  DataError for an unknown name, a missing file, or a file that is not a vocabulary
    """
    if name in NAMES:
        return _embedded_tokenizer(name)
    if not name.endswith(".tiktoken"):
        raise DataError(
            f"unknown tokenizer {name!r}: {words.did_you_mean(name, NAMES)} A vocabulary of your own is given by the "
            "path of its .tiktoken file."
        )
    path = Path(os.path.expanduser(name)).resolve()
    try:
        status = path.stat()
    except OSError:
        raise DataError(f"tokenizer {name!r}: there is no file {path}. Name an existing .tiktoken file.") from None
    return _file_tokenizer(path, status.st_mtime_ns, status.st_size)


@functools.cache
def _embedded_tokenizer(name: str) -> Tokenizer:
    if name == "bytes":
        return _build(name, {bytes([byte]): byte for byte in range(256)})
    return _build(name, bpe.parse_tiktoken(assets.read_asset(f"{name}.tiktoken.xz"), f"the embedded vocabulary {name}"))


@functools.lru_cache(maxsize=4)
def _file_tokenizer(path: Path, mtime_ns: int, num_bytes: int) -> Tokenizer:
    # The time and size are part of the key only: a file that was written again is read again.
    return _build(path.stem, bpe.parse_tiktoken(path.read_bytes(), str(path)), str(path))


def _build(name: str, ranks: dict[bytes, int], source: str | None = None) -> Tokenizer:
    eot_id = max(ranks.values()) + 1
    digest = hashlib.sha256(f"{GPT2_PATTERN}\n{END_OF_TEXT} {eot_id}\n".encode())
    digest.update(bpe.tiktoken_lines(ranks))
    return Tokenizer(name, ranks, GPT2_PATTERN, eot_id, eot_id + 1, digest.hexdigest(), source or name)
