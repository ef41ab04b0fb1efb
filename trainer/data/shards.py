"""Shards of tokens: found by their names, written in llm.c's layout, and read as one long list of sequences."""

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import xxhash

from trainer import files
from trainer.data.find import bracket_hint, find, readable, tell_left_out
from trainer.data.layouts import HEADER_BYTES, LLAMA3, LLMC, SUFFIXES, VERSIONS, Shard, how_to_prepare, open_shard
from trainer.errors import DataError

logger = logging.getLogger(__name__)

MAX_SHARD_TOKENS = 2**31 - 1  # the header counts in int32
_HELD_OUT = re.compile(r"(^|[_.\-])(val|valid|validation|test)([_.\-]|$)")
_BLOCK_BYTES = 1 << 16
_BLOCKS_PER_SHARD = 6  # the first, the last and four between: 20 GB in 100 shards cost 39 MB of reading
_NOTABLE_REMAINDER = 0.05
MAX_OPEN_MAPS = 128  # each keeps a file descriptor, and 1,024 are allowed on most machines


class ShardWriter:
    """Writes tokens to one shard in llm.c's layout, which appears whole when the block ends, or not at all.

    with ShardWriter(path, vocab_size) as shard:
        shard.write(tokens)                            # [n] integers, as often as wanted
    """

    def __init__(self, path: Path, vocab_size: int) -> None:
        self.path = Path(path)
        self.vocab_size = vocab_size
        self.dtype = np.dtype(dtype_for(vocab_size)).newbyteorder("<")
        self.num_tokens = 0
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._file = self._stack.enter_context(files.atomic_file(self.path))
        self._file.write(bytes(HEADER_BYTES))
        return self

    def write(self, tokens: np.ndarray) -> None:
        """Appends tokens. Raises DataError for an id outside the vocabulary and when the shard holds 2^31 tokens."""
        if tokens.size and not (int(tokens.min()) >= 0 and int(tokens.max()) < self.vocab_size):
            raise DataError(
                f"shard {self.path}: ids from {tokens.min()} to {tokens.max()} do not fit a vocabulary of "
                f"{self.vocab_size}. Give the vocabulary size of the tokenizer that made them."
            )
        if self.num_tokens + tokens.size > MAX_SHARD_TOKENS:
            raise DataError(f"shard {self.path} would hold more than {MAX_SHARD_TOKENS:,} tokens. Start another.")
        self._file.write(tokens.astype(self.dtype, copy=False).tobytes())
        self.num_tokens += tokens.size

    def __exit__(self, kind: type[BaseException] | None, *details: Any) -> None:
        if kind is None:
            header = np.zeros(HEADER_BYTES // 4, dtype="<i4")
            magic = LLMC if self.dtype.itemsize == 2 else LLAMA3
            header[:3] = magic, VERSIONS[magic], self.num_tokens
            self._file.seek(0)
            self._file.write(header.tobytes())
        self._stack.__exit__(kind, *details)


def dtype_for(vocab_size: int) -> str:
    """The narrowest type that shards of this vocabulary are stored in."""
    return "uint16" if vocab_size <= 2**16 else "uint32"


def resolve_shards(
    patterns: Sequence[str],
    base: Path,
    split: Literal["train", "validation"] | None = None,
    *,
    skip_unreadable: bool = False,
) -> list[Path]:
    """The files that patterns (files, folders, globs; relative ones from `base`) stand for, in natural order a pattern.

    split            which files of a *folder* are meant: "validation" those whose names say val, valid, validation or test,
                     "train" the others, None all. Files and globs are taken as they are given.
    skip_unreadable  goes on without what is there and cannot be read; each is named in a warning
    raises           DataError when a pattern stands for nothing, or something cannot be read
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        matches = _expand(pattern, Path(base), split, skip_unreadable)
        repeated = [path.name for path in matches if path in found]
        if repeated:
            logger.warning("%d shards of %s were named before and count once (%s)", len(repeated), pattern, repeated[0])
        real = {path.resolve() for path in found}
        linked = []
        for path in matches:
            if path not in found and path.resolve() in real:
                linked.append(path)
            real.add(path.resolve())
        if linked:
            words = "%d shards of %s are files that were named before by another path, and count again (%s)"
            logger.warning(words, len(linked), pattern, linked[0])
        found.update(dict.fromkeys(matches))
    if not found:
        raise DataError(f"no shards are named. {how_to_prepare()}")
    return list(found)


def _expand(pattern: str, base: Path, split: str | None, skip_unreadable: bool) -> list[Path]:
    path = base / os.path.expanduser(pattern)
    is_folder = os.path.isdir(path)
    found = find(pattern, base, lambda path: path.suffix.lower() in SUFFIXES if is_folder else True, deep=False)
    inside = readable(found, f"data {pattern!r}", skip_unreadable=skip_unreadable, remedy="data.skip_unreadable=true")
    what = f"folder {path}" if is_folder else f"pattern {pattern!r}"
    found = replace(found, others=list(filter(_may_be_a_shard, found.others)))
    tell_left_out(found, what, "name it, or its files, too")
    if not is_folder:
        if not inside:
            raise DataError(
                f"no shard matches {str(path)!r}: there is no such file or folder.{bracket_hint(pattern)} {how_to_prepare()}"
            )
        return inside
    matches = [p for p in inside if split is None or is_held_out_name(p) == (split == "validation")]
    if not matches:
        kind = f"{split} shards" if inside else "shards"
        others = f" (it was not looked into: {'; '.join(found.aside)})" if found.aside else ""
        raise DataError(f"folder {path} holds no {kind} ({', '.join(SUFFIXES)}){others}. {how_to_prepare()}")
    return matches


def _may_be_a_shard(path: Path) -> bool:
    """Whether a file's name says that it is a shard in a form that is not read: packed, or not copied to its end."""
    inner = [suffix.lower() for suffix in path.suffixes[:-1]]
    return any(suffix in SUFFIXES for suffix in inner) and path.suffix not in (".idx", ".metadata")


def held_out_beside(patterns: Sequence[str], base: Path) -> list[Path]:
    """The shards of the *folders* among these patterns that `resolve_shards` leaves out of training for their names."""
    folders = [pattern for pattern in patterns if os.path.isdir(base / os.path.expanduser(pattern))]
    found = [find(folder, base, lambda path: path.suffix.lower() in SUFFIXES, deep=False).files for folder in folders]
    return [path for each in found for path in each if is_held_out_name(path)]


def is_held_out_name(path: Path) -> bool:
    """Whether a shard's name says val, valid, validation or test."""
    return bool(_HELD_OUT.search(path.stem))


class TokenDataset:
    """Sequences of `sequence_length + 1` tokens, cut from each shard at stride `sequence_length`.

    A sequence overlaps the next one of its shard by one token, so that every token but the first of a shard is once a
    label. What remains at the end of a shard is left out. Sequences are numbered through all shards in order.

    num_sequences  over all shards
    num_tokens     stored, remainders included
    fingerprint    32 hex digits of sequence_length and, per shard in order, file name, count, type, and a sample of the
                   content (six blocks of 64 KiB, first and last among them; a change elsewhere can be missed)
    """

    def __init__(self, paths: Sequence[Path], sequence_length: int, vocab_size: int, dtype: str | None = None) -> None:
        """Opens the shards and checks a sample of each.

        raises  DataError when there are no shards, one is not sound, an id is outside the vocabulary, or all of them
                together do not hold one sequence
        """
        if not paths:
            raise DataError(f"no shards are named. {how_to_prepare()}")
        if sequence_length < 1:
            raise DataError(f"sequence_length is {sequence_length}; 1 or more was expected.")
        self.sequence_length = sequence_length
        self.vocab_size = vocab_size
        self.shards = tuple(open_shard(Path(path), dtype) for path in paths)
        self.num_tokens = sum(shard.num_tokens for shard in self.shards)
        counts = [max(0, (shard.num_tokens - 1) // sequence_length) for shard in self.shards]
        self._ends = np.cumsum(np.array(counts, dtype=np.int64))  # [shards], the first sequence after each
        self.num_sequences = int(self._ends[-1])
        self._maps: dict[int, np.ndarray] = {}
        if self.num_sequences == 0:
            raise DataError(
                f"{len(self.shards)} shard(s) from {self.shards[0].path} on hold {self.num_tokens:,} tokens, and one "
                f"sequence of length {sequence_length} needs {sequence_length + 1:,} in one shard. Lower "
                f"sequence_length, or prepare more text. {how_to_prepare()}"
            )
        self.fingerprint: str = self.fingerprint_at(sequence_length)
        self._tell_remainders(counts)

    def _tell_remainders(self, counts: Sequence[int]) -> None:
        """Warns of shards that hold no sequence, and of remainders that come to much; `counts` are sequences by shard."""
        counted, length = list(zip(self.shards, counts, strict=True)), self.sequence_length
        left = sum(shard.num_tokens - (count * length + 1 if count else 0) for shard, count in counted)
        short = [shard.path for shard, count in counted if not count and shard.num_tokens]
        if short or left > _NOTABLE_REMAINDER * self.num_tokens:
            whose = ""
            if short:
                fewer = f"hold less than a sequence of {length} (e.g. {short[0]})"
                whose = f"{len(short)} of {len(counted)} shards {fewer}; "
            lost = f"{left:,} of {self.num_tokens:,} tokens are not read, since they are less than a sequence"
            remedy = "lower sequence_length, or write longer shards"
            logger.warning("%s%s at the end of a shard; %s", whose, lost, remedy)

    def fingerprint_at(self, sequence_length: int) -> str:
        """The fingerprint that the same shards have when they are cut at this length. Checks the blocks that are read for it."""
        digest = xxhash.xxh3_128(f"sequence_length {sequence_length}\n".encode())
        for shard in self.shards:
            self._sample(shard, digest)
        return digest.hexdigest()

    def contents(self) -> list[str]:
        """What the tokens of each shard are known by, whatever its name and its form: 32 hex digits of their count and of such a sample."""
        return [self._content(shard) for shard in self.shards]

    def _content(self, shard: Shard) -> str:
        digest = xxhash.xxh3_128(f"{shard.num_tokens}\n".encode())
        for _, sample in _sampled(shard, _BLOCK_BYTES // 4):
            digest.update(sample.astype("<u4").tobytes())
        return digest.hexdigest()

    def sequences(self, ids: np.ndarray) -> np.ndarray:
        """The tokens of sequences, ids [n] int64 -> [n, sequence_length + 1] int64.

        raises  DataError when a token is outside the vocabulary
        """
        ids = np.asarray(ids, dtype=np.int64)
        assert ids.size == 0 or (ids.min() >= 0 and ids.max() < self.num_sequences), "sequence ids count from 0"
        tokens = np.empty((len(ids), self.sequence_length + 1), dtype=np.int64)
        shard_of = np.searchsorted(self._ends, ids, side="right")
        for row, (number, shard_number) in enumerate(zip(ids.tolist(), shard_of.tolist())):
            before = int(self._ends[shard_number - 1]) if shard_number else 0
            start = (number - before) * self.sequence_length
            tokens[row] = self._map(shard_number)[start : start + self.sequence_length + 1]
        if tokens.size and (tokens.max() >= self.vocab_size or tokens.min() < 0):
            row = int(np.flatnonzero(((tokens >= self.vocab_size) | (tokens < 0)).any(axis=1))[0])
            self._check_ids(self.shards[shard_of[row]], tokens[row])
        return tokens

    def _map(self, shard_number: int) -> np.ndarray:
        tokens = self._maps.get(shard_number)
        if tokens is None:
            while len(self._maps) >= MAX_OPEN_MAPS:
                self._maps.pop(next(iter(self._maps)))
            tokens = self._maps[shard_number] = self.shards[shard_number].tokens()
        return tokens

    def _sample(self, shard: Shard, digest: "xxhash.xxh3_128") -> None:
        """Adds a shard to the fingerprint and checks the blocks that are read for it."""
        tokens = shard.tokens()
        block = _BLOCK_BYTES // tokens.dtype.itemsize
        sampled = list(_sampled(shard, block))
        starts, blocks = [start for start, _ in sampled], [sample for _, sample in sampled]
        digest.update(f"{shard.path.name} {shard.num_tokens} {tokens.dtype.str}\n".encode())
        for sample in blocks:
            digest.update(sample.tobytes())
        if shard.layout == "raw" and tokens.dtype.itemsize == 2:
            # A multiple of the block keeps even words even; the last block may start at an odd one, so it is cut anew.
            even = [tokens[start - start % 2 :][:block] for start in starts]
            if all(not s[1::2].any() for s in even) and shard.num_tokens > 1 and any(s[::2].any() for s in even):
                raise DataError(
                    f"shard {shard.path} is read as uint16, but every second number in it is 0: it holds uint32. "
                    "Set data.dtype to uint32."
                )
        for sample in blocks:
            self._check_ids(shard, sample)

    def _check_ids(self, shard: Shard, sample: np.ndarray) -> None:
        if sample.size == 0:
            return
        for id in (int(sample.max()), int(sample.min())):
            if not 0 <= id < self.vocab_size:
                raise DataError(
                    f"shard {shard.path} holds the token id {id:,}, outside the vocabulary of {self.vocab_size:,} ids. "
                    "It was probably made with another tokenizer, or is stored as another type than it is read as "
                    f"({np.dtype(shard.dtype)}, layout {shard.layout}): name its tokenizer, or set data.dtype."
                )


def _sampled(shard: Shard, block: int) -> Iterator[tuple[int, np.ndarray]]:
    """The blocks of this number of tokens that are read of a shard, each with the number of its first token."""
    tokens = shard.tokens()
    last = max(0, shard.num_tokens - block)
    for start in sorted({last * i // (_BLOCKS_PER_SHARD - 1) for i in range(_BLOCKS_PER_SHARD)}):
        yield start, tokens[start : start + block]
