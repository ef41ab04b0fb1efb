"""Documents to tokens, in threads and in order: the encoder gives up the interpreter lock while it works."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import xxhash

from trainer.data.tokenizer import Tokenizer, well_formed

_BATCH_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class EncodedBatch:
    """A batch of documents as tokens, split by split: ids, number of documents, bytes of text."""

    splits: dict[str, tuple[np.ndarray, int, int]]


def encode_in_threads(
    texts: Iterable[tuple[str | None, str]], tokenizer: Tokenizer, held_out: float | None, num_workers: int
) -> Iterator[EncodedBatch]:
    """Encoded batches in the order of the documents. At most two batches a worker are in memory at once."""
    with ThreadPoolExecutor(num_workers, thread_name_prefix="tokenize") as pool:
        pending: deque[Future[EncodedBatch]] = deque()
        try:
            for batch in _batches(texts):
                pending.append(pool.submit(_encode, batch, tokenizer, held_out))
                if len(pending) > 2 * num_workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _batches(texts: Iterable[tuple[str | None, str]]) -> Iterator[list[tuple[str | None, str]]]:
    batch, characters = [], 0
    for split, document in texts:
        batch.append((split, document))
        characters += len(document)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _encode(batch: list[tuple[str | None, str]], tokenizer: Tokenizer, held_out: float | None) -> EncodedBatch:
    eot = np.array([tokenizer.eot_id], dtype=np.uint32)
    parts: dict[str, list[np.ndarray]] = {"train": [], "validation": []}
    num_documents, text_bytes = {"train": 0, "validation": 0}, {"train": 0, "validation": 0}
    for split, document in batch:
        document = well_formed(document)
        content = document.encode()
        split = split or ("validation" if is_held_out(content, held_out or 0.0) else "train")
        parts[split] += [eot, tokenizer.encode_array(document)]
        num_documents[split] += 1
        text_bytes[split] += len(content)
    return EncodedBatch({s: (np.concatenate(p), num_documents[s], text_bytes[s]) for s, p in parts.items() if p})


def is_held_out(content: bytes, fraction: float) -> bool:
    """Whether a document belongs to validation: a hash of its text as a number in 0..1, compared with the fraction."""
    return xxhash.xxh3_64_intdigest(content) < fraction * 2.0**64
