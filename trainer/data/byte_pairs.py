"""Byte-level BPE through tiktoken, by which each distinct word of a batch is encoded once: the only user of tiktoken.

Most words of a text stood there before. So a batch is cut into words, the distinct ones are found (by pyarrow) and encoded, and the
ids are laid out in the order of the text (by numpy). All of it releases the interpreter lock, so that threads encode side by side,
and nothing is remembered from one batch to the next.

A text may be cut before a space that stands between two visible characters, where no piece of the pattern reaches over such a space:
GPT-2's and those that followed it begin a piece there. `reaches_over_spaces` and a probe text say where it is not so.
"""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import tiktoken

MARK = "\U0010ffff"
"""Stands between the words of a batch; a noncharacter, which is in no text that is meant to be read."""

_NONE: frozenset[str] = frozenset()


@dataclass(frozen=True)
class BytePairs:
    """A vocabulary and a pattern of pieces, without special tokens: whatever a text spells, it is text."""

    ranks: Mapping[bytes, int] = field(repr=False)
    """The bytes of each token -> its id; lower ids merge first."""
    pattern: str

    @functools.cached_property
    def _mark_id(self) -> int:
        return max(self.ranks.values()) + 1

    @functools.cached_property
    def _encoding(self) -> tiktoken.Encoding:
        return tiktoken.Encoding(
            "text", pat_str=self.pattern, mergeable_ranks=dict(self.ranks), special_tokens={MARK: self._mark_id}
        )

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text without lone surrogates, [n] uint32. ValueError where its pattern does not come to an end."""
        return self._encode(text, _NONE)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The same ids as `encode` gives, text by text."""
        contents = [text.encode() for text in texts]
        data = b"".join(contents)
        if not data or MARK.encode() in data:
            return [self.encode(text) for text in texts]
        import pyarrow as pa  # here, since opening a tokenizer needs none of it

        ends = np.cumsum([*map(len, contents)], dtype=np.int64)
        offsets = _offsets(data, ends)
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
        words = pa.Array.from_buffers(pa.large_binary(), len(offsets) - 1, buffers).dictionary_encode()
        ids = self._encode(MARK.encode().join(words.dictionary.to_pylist()).decode(), frozenset((MARK,)))
        stops = np.append(np.flatnonzero(ids == self._mark_id), ids.size)
        starts = np.append(0, stops[:-1] + 1)
        which = words.indices.to_numpy()
        lengths = (stops - starts)[which]
        after = np.cumsum(lengths)
        places = np.arange(after[-1]) + np.repeat(starts[which] - after + lengths, lengths)
        return np.split(ids[places], np.append(0, after)[np.searchsorted(offsets, ends)][:-1])

    def _encode(self, text: str, allowed: frozenset[str]) -> np.ndarray:
        try:
            return self._encoding.encode_to_numpy(text, allowed_special=allowed, disallowed_special=())
        except BaseException as error:
            if (
                type(error).__name__ != "PanicException"
            ):  # what its earlier versions raise where a pattern needs too many steps
                raise
            raise ValueError(str(error)) from None


def reaches_over_spaces(tokens: Iterable[bytes]) -> bytes | None:
    """A token that goes on over a space behind a visible character, so that texts must not be cut there; None where none does."""
    return next((token for token in tokens if _OVER_A_SPACE.search(token)), None)


def _offsets(data: bytes, ends: np.ndarray) -> np.ndarray:
    """Where words begin in the bytes of texts that end at `ends`, and the end of the last, int64."""
    kinds = np.frombuffer(data.translate(_KINDS), np.uint8)
    is_cut = np.zeros(kinds.size + 1, dtype=bool)
    is_cut[1 : kinds.size - 1] = (kinds[1:-1] == _SPACE) & (kinds[:-2] & _MAY_END > 0) & (kinds[2:] & _MAY_BEGIN > 0)
    is_cut[0] = True
    is_cut[ends] = True
    return np.flatnonzero(is_cut)


# As UTF-8 ends and begins them; what shares a byte with a character of these counts as one of them, and is only not cut at.
_SPACES = "\x85\xa0\u1680\u180e\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
_LAST_BYTES, _FIRST_BYTES = ({character.encode()[at] for character in _SPACES} for at in (-1, 0))
_MAY_END, _MAY_BEGIN, _SPACE = 1, 2, 4
_VISIBLE = [byte for byte in range(33, 256) if byte != 127]
_KINDS = bytes(
    _SPACE
    if byte == 32
    else (byte in _VISIBLE) * ((byte not in _LAST_BYTES) * _MAY_END + (byte not in _FIRST_BYTES) * _MAY_BEGIN)
    for byte in range(256)
)
_OVER_A_SPACE = re.compile(b"[" + b"".join(b"\\x%02x" % byte for byte in range(256) if _KINDS[byte] & _MAY_END) + b"] ")
