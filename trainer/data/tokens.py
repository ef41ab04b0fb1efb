"""Text to token ids and back: what every tokenizer can."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

REPLACEMENT = "\ufffd".encode()
"""What stands for bytes that are unknown."""


@dataclass(frozen=True, kw_only=True)
class Tokenizer(ABC):
    """Text to ids and back, and the special tokens by what they are for."""

    name: str
    vocab_size: int
    """Number of ids, special and added ones counted: one more than the largest. A model may have more rows."""
    eot_id: int
    """The separator: it stands before each document."""
    bos_id: int | None
    """Begins a text, where the tokenizer has such a token."""
    eos_id: int | None
    """What the tokenizer's own files call the end: of a turn of a chat, for some, and not the separator."""
    pad_id: int | None
    begins_with_bos: bool = False
    """Whether `bos_id` stands before each document, behind the separator."""
    sha256: str
    """Fingerprint: equal ones give a text equal ids."""
    source: str = field(compare=False)
    """What `load_tokenizer` finds it by again: a name, or an absolute path."""
    files: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    """The original files that it was opened from, by name in the folder `source`, each with its sha256; none where it is a name or a
    `.tiktoken` file."""

    @property
    def begin_ids(self) -> tuple[int, ...]:
        """What stands before each document."""
        if self.begins_with_bos and self.bos_id is not None and self.bos_id != self.eot_id:
            return self.eot_id, self.bos_id
        return (self.eot_id,)

    @property
    def start_id(self) -> int:
        """What a text begins with that nothing stands before: the last of `begin_ids`."""
        return self.begin_ids[-1]

    @property
    @abstractmethod
    def specials(self) -> Mapping[str, int]:
        """The special tokens, which no text becomes, each with its id."""

    @property
    @abstractmethod
    def way(self) -> str:
        """How a corpus is encoded, in words."""

    @property
    @abstractmethod
    def _token_bytes(self) -> Sequence[bytes]:
        """The bytes that each id is shown as, [vocab_size]."""

    @property
    @abstractmethod
    def byte_lengths(self) -> np.ndarray:
        """Bytes of text that each id stands for, [vocab_size] int64; 0 for special tokens."""

    @abstractmethod
    def encode_array(self, text: str) -> np.ndarray:
        """The same ids as `encode`, [n] uint32."""

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The same ids as `encode`, text by text; releases the interpreter lock, so that threads encode side by side."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text. A special token that it spells, such as "<|endoftext|>", is plain text."""
        return self.encode_array(text).tolist()

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of ids. An id outside the vocabulary, as a padded model may sample, becomes U+FFFD."""
        table, size = self._token_bytes, self.vocab_size
        return b"".join(table[i] if 0 <= i < size else REPLACEMENT for i in ids)

    def num_bytes(self, ids: np.ndarray) -> int:
        """Bytes of text that ids of any shape stand for; special tokens and negative ids (labels left out) count 0."""
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
