"""A part of a text that fits into memory, the same one in whatever order the text is read."""

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from trainer.data.hold_out import text_hash
from trainer.data.tokens import well_formed

PORTION_CHARACTERS = 1 << 16
"""Longer documents count as several, so that a file of a gigabyte is not taken or left as a whole."""


@dataclass(frozen=True)
class TextSample:
    """Portions of some text, and of how much."""

    portions: tuple[bytes, ...]
    """UTF-8, in the order of their hashes."""
    num_bytes: int
    """Of the portions together."""
    total_bytes: int
    """Of the text that they were taken from."""

    @property
    def is_whole(self) -> bool:
        return self.num_bytes == self.total_bytes


def sample(documents: Iterable[str], max_bytes: int) -> TextSample:
    """The text whole where it has at most `max_bytes`, else as many portions of it as fit, those with the lowest hashes.

    A portion is a document, or a part of a long one that ends with a line. Lone surrogates are taken as U+FFFD. No more than
    `max_bytes` and one document are in memory at a time.
    """
    kept: list[tuple[int, bytes]] = []
    below, num_bytes, total = 1 << 64, 0, 0
    for document in documents:
        for portion in _portions(document):
            content = well_formed(portion).encode()
            total += len(content)
            if (hash_ := text_hash(content)) >= below:
                continue
            heapq.heappush(kept, (-hash_, content))
            num_bytes += len(content)
            while num_bytes > max_bytes:
                # All that has the same hash goes: one of two equal portions would depend on their order.
                below = -kept[0][0]
                while kept and -kept[0][0] == below:
                    num_bytes -= len(heapq.heappop(kept)[1])
    return TextSample(tuple(content for _, content in sorted(kept, reverse=True)), num_bytes, total)


def _portions(document: str) -> Iterator[str]:
    start = 0
    while len(document) - start > PORTION_CHARACTERS:
        end = document.rfind("\n", start, start + PORTION_CHARACTERS) + 1 or start + PORTION_CHARACTERS
        yield document[start:end]
        start = end
    yield document[start:]
