"""Writes the tokens of one split into as many shards as they need."""

from pathlib import Path
from typing import Any, Self

import numpy as np

from trainer import files
from trainer.data.encode import EncodedTexts
from trainer.data.shards import ShardWriter


class SplitWriter:
    """Shards of exactly `tokens_per_shard` tokens, the last one of what remains. No tokens, no shard.

    shards   file, tokens, documents (that begin in it), num_bytes and sha256 of each one finished
    """

    def __init__(
        self, folder: Path, pattern: str, first_number: int, tokens_per_shard: int, vocab_size: int, eot_id: int
    ) -> None:
        self.shards: list[dict[str, Any]] = []
        self.documents = self.tokens = self.text_bytes = self.surrogates = 0
        self._folder, self._pattern, self._number = folder, pattern, first_number
        self._tokens_per_shard, self._vocab_size, self._eot_id = tokens_per_shard, vocab_size, eot_id
        self._open: ShardWriter | None = None
        self._documents_in_shard = 0
        self._hashes: list[np.ndarray] = []
        self._sizes: list[np.ndarray] = []

    def __enter__(self) -> Self:
        return self

    def write(self, texts: EncodedTexts) -> None:
        """Appends whole documents."""
        self._hashes.append(texts.hashes)
        self._sizes.append(texts.sizes)
        self.documents += len(texts.sizes)
        self.tokens += texts.tokens.size
        self.text_bytes += int(texts.sizes.sum())
        self.surrogates += texts.surrogates
        tokens = texts.tokens
        while tokens.size:
            if self._open is None:
                self._open = ShardWriter(self._folder / (self._pattern % self._number), self._vocab_size).__enter__()
                self._number, self._documents_in_shard = self._number + 1, 0
            fitting = tokens[: self._tokens_per_shard - self._open.num_tokens]
            self._open.write(fitting)
            self._documents_in_shard += int(np.count_nonzero(fitting == self._eot_id))
            tokens = tokens[fitting.size :]
            if self._open.num_tokens == self._tokens_per_shard:
                self._finish(None, None, None)

    def known(self) -> tuple[np.ndarray, np.ndarray]:
        """Hash (uint64) and bytes of text (int64) of each document so far, both [documents]."""
        empty_hashes, empty_sizes = np.empty(0, np.uint64), np.empty(0, np.int64)
        return np.concatenate([empty_hashes, *self._hashes]), np.concatenate([empty_sizes, *self._sizes])

    def summary(self) -> dict[str, Any]:
        """What the split amounts to, for the manifest."""
        return {
            "documents": self.documents,
            "tokens": self.tokens,
            "text_bytes": self.text_bytes,
            "bytes_per_token": self.text_bytes / self.tokens if self.tokens else None,
        }

    def __exit__(self, kind: type[BaseException] | None, *details: Any) -> None:
        if self._open is not None:
            self._finish(kind, *details)

    def _finish(self, kind: type[BaseException] | None, *details: Any) -> None:
        shard, self._open = self._open, None
        assert shard is not None
        shard.__exit__(kind, *details)
        if kind is None:
            counts = {"tokens": shard.num_tokens, "documents": self._documents_in_shard}
            content = {"num_bytes": shard.path.stat().st_size, "sha256": files.sha256(shard.path)}
            self.shards.append({"file": shard.path.name, **counts, **content})
