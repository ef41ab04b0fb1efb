"""Which text is held out: a share of all text, of documents that are chosen by a hash of their text.

So the choice depends neither on the order of the documents nor on chance, and the same text is never on both sides.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import xxhash

from trainer.data.tokenizer import well_formed

_MAX_KEPT = 200_000
"""Documents whose hash and size are remembered while measuring; beyond, those with the lowest hashes."""
_ALL = 2**64


@dataclass(frozen=True)
class HoldOut:
    """The rule: documents with a hash below `below` and of at most `max_bytes`, or the end of the one whose hash is `divided`."""

    below: int = 0
    max_bytes: int = 0
    """Longer ones are trained on: one of them would be far more than the share."""
    divided: int | None = None
    end_bytes: int = 0
    """Of the divided one, held out."""

    def parts(self, document: str) -> list[tuple[str, str]]:
        """A document as (split, text): whole in "train" or in "validation", or its beginning in the one and its end in the other."""
        content = document.encode()
        hash_ = text_hash(content)
        if hash_ == self.divided:
            cut = _place_to_cut(document, self.end_bytes / len(content))
            return [("train", document[:cut]), ("validation", document[cut:])] if 0 < cut < len(document) else [("train", document)]
        is_held_out = hash_ < self.below and len(content) <= self.max_bytes
        return [("validation" if is_held_out else "train", document)]


def text_hash(content: bytes) -> int:
    """What a document is known by: a number below 2^64."""
    return xxhash.xxh3_64_intdigest(content)


def choose(documents: Iterable[str], fraction: float) -> HoldOut:
    """The rule that holds out about this fraction of the text, in whole documents where there are some that fit into it.

    Text is measured in bytes of UTF-8, to which tokens are nearly proportional. Where all documents are longer than the share,
    or the shorter ones come to less than half of it, the end of one is held out. With 0 nothing is.
    """
    if not fraction:
        return HoldOut()
    total, kept, limit = 0, [], _ALL
    for document in documents:
        content = well_formed(document).encode()
        total += len(content)
        if (hash_ := text_hash(content)) < limit:
            kept.append((hash_, len(content)))
        if len(kept) > _MAX_KEPT:
            kept.sort()
            del kept[_MAX_KEPT // 2 :]
            limit = kept[-1][0] + 1
    kept.sort()
    return _rule(kept, fraction, total, is_whole=limit == _ALL)


def _rule(documents: list[tuple[int, int]], fraction: float, total: int, *, is_whole: bool) -> HoldOut:
    """The rule for documents as (hash, bytes) in the order of their hashes: all there are, or those with the lowest hashes."""
    wanted, held, before = fraction * total, 0, 0
    for hash_, size in documents:
        if size > wanted:
            continue
        if held and held + size - wanted > wanted - held:  # without it the share is nearer
            return HoldOut(before + 1, int(wanted))
        held, before = held + size, hash_
        if held >= wanted:
            return HoldOut(hash_ + 1, int(wanted))
    if not is_whole:  # so many that a share of the documents is a share of the text
        return HoldOut(int(fraction * _ALL), int(wanted))
    if held >= wanted / 2 and held:
        return HoldOut(_ALL, int(wanted))
    longer = [hash_ for hash_, size in documents if size > wanted]
    return HoldOut(divided=longer[0], end_bytes=int(wanted)) if longer else HoldOut()


def _place_to_cut(document: str, share: float) -> int:
    """Where the last `share` of a text begins, moved back a little to the end of a paragraph, a line or a word."""
    cut = len(document) - max(1, round(len(document) * share))
    earliest = max(1, cut - max(1, (len(document) - cut) // 4))
    for mark in ("\n\n", "\n", " "):
        if (place := document.rfind(mark, earliest, cut + 1)) > 0 and place + len(mark) < len(document):
            return place + len(mark)
    return cut
