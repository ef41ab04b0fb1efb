"""Documents to tokens, in threads and in order: the encoder gives up the interpreter lock while it works."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from trainer.data.hold_out import HoldOut, text_hash
from trainer.data.tokenizer import Tokenizer, well_formed

BATCH_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class EncodedTexts:
    """Documents as tokens."""

    tokens: np.ndarray
    """uint32 [n], each document with its `<|endoftext|>` before it."""
    hashes: np.ndarray
    """uint64 [documents]: what each is known by."""
    sizes: np.ndarray
    """int64 [documents]: bytes of text."""


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
            for batch in _batches(texts):
                pending.append(pool.submit(_encode, batch, tokenizer, hold_out))
                if len(pending) > 2 * num_workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _batches(texts: Iterable[Labelled]) -> Iterator[list[Labelled]]:
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
    eot = np.array([tokenizer.eot_id], dtype=np.uint32)
    tokens: dict[str, list[np.ndarray]] = {}
    contents: dict[str, list[bytes]] = {}
    for split, document in batch:
        document = well_formed(document)
        for part_of, text in [(split, document)] if split else hold_out.parts(document):
            tokens.setdefault(part_of, []).extend([eot, tokenizer.encode_array(text)])
            contents.setdefault(part_of, []).append(text.encode())
    return {
        split: EncodedTexts(
            np.concatenate(tokens[split]),
            np.array([text_hash(text) for text in texts], dtype=np.uint64),
            np.array([*map(len, texts)], dtype=np.int64),
        )
        for split, texts in contents.items()
    }
