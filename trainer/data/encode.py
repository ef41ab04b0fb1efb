"""Documents to tokens, in threads and in order: the encoder gives up the interpreter lock while it works."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from trainer.data.hold_out import HoldOut, text_hash
from trainer.data.tokens import Tokenizer, well_formed

BATCH_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class EncodedTexts:
    """Documents as tokens."""

    tokens: np.ndarray
    """uint32 [n], each document with the tokenizer's `begin_ids` before it."""
    hashes: np.ndarray
    """uint64 [documents]: what each is known by."""
    sizes: np.ndarray
    """int64 [documents]: bytes of text."""
    surrogates: int
    """Lone surrogates that became U+FFFD."""


Labelled = tuple[str | None, str]
"""The split that a document belongs to, None where the rule decides it; and its text."""

EncodedBatch = dict[str, EncodedTexts]
"""A batch of documents, split by split."""


def encode_in_threads(
    texts: Iterable[Labelled], tokenizer: Tokenizer, hold_out: HoldOut, num_workers: int
) -> Iterator[EncodedBatch]:
    """Encoded batches in the order of the documents. At most two batches a worker are in memory at once."""
    with ThreadPoolExecutor(num_workers, thread_name_prefix="tokenize") as pool:
        pending: deque[Future[EncodedBatch]] = deque()
        try:
            for batch in batches(texts):
                pending.append(pool.submit(_encode, batch, tokenizer, hold_out))
                if len(pending) > 2 * num_workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def batches(texts: Iterable[Labelled]) -> Iterator[list[Labelled]]:
    """Documents in order, of about a million characters together."""
    batch, characters = [], 0
    for split, document in texts:
        batch.append((split, document))
        characters += len(document)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _encode(batch: list[Labelled], tokenizer: Tokenizer, hold_out: HoldOut) -> EncodedBatch:
    begin = np.array(tokenizer.begin_ids, dtype=np.uint32)
    texts: dict[str, list[str]] = {}
    replaced = dict.fromkeys(("train", "validation"), 0)
    for split, document in batch:
        sound = well_formed(document)
        for part_of, text in [(split, sound)] if split else hold_out.parts(sound):
            texts.setdefault(part_of, []).append(text)
        if sound is not document:
            replaced[part_of] += sound.count("\ufffd") - document.count("\ufffd")
    return {split: _encoded(found, begin, tokenizer, replaced[split]) for split, found in texts.items()}


def _encoded(texts: list[str], begin: np.ndarray, tokenizer: Tokenizer, surrogates: int) -> EncodedTexts:
    contents = [text.encode() for text in texts]
    return EncodedTexts(
        tokens=np.concatenate([part for ids in tokenizer.encode_batch(texts) for part in (begin, ids)]),
        hashes=np.array([*map(text_hash, contents)], dtype=np.uint64),
        sizes=np.array([*map(len, contents)], dtype=np.int64),
        surrogates=surrogates,
    )
