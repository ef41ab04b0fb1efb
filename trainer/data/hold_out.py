"""Which text is held out: a share of all text, of documents that are chosen by a hash of their text.

So the choice depends neither on the order of the documents nor on chance, and the same text is never on both sides.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import xxhash

from trainer.data.tokens import well_formed

MAX_KEPT = 200_000
"""Documents whose hash and size are remembered while measuring; beyond, those with the lowest hashes."""
_ALL = 2**64


@dataclass(frozen=True)
class HoldOut:
    """The rule: documents with a hash below `below`, of at most `max_bytes` and not `too_often`, or the end of the one whose hash is `divided`."""

    below: int = 0
    max_bytes: int = 0
    """Longer ones are trained on: one of them would be far more than the share."""
    too_often: frozenset[int] = frozenset()
    """Hashes of documents that are trained on, since they stand there so often that together they would be more than the share."""
    divided: int | None = None
    end_bytes: int = 0
    """Of the divided one, held out each time that it stands there."""

    def parts(self, document: str) -> list[tuple[str, str]]:
        """A document as (split, text): whole in "train" or in "validation", or its beginning in the one and its end in the other."""
        content = document.encode()
        hash_ = text_hash(content)
        if hash_ == self.divided:
            cut = _place_to_cut(document, self.end_bytes / len(content))
            is_cut = 0 < cut < len(document)
            return [("train", document[:cut]), ("validation", document[cut:])] if is_cut else [("train", document)]
        is_held_out = hash_ < self.below and len(content) <= self.max_bytes and hash_ not in self.too_often
        return [("validation" if is_held_out else "train", document)]


def text_hash(content: bytes) -> int:
    """What a document is known by: a number below 2^64."""
    return xxhash.xxh3_64_intdigest(content)


def choose(documents: Iterable[str], fraction: float) -> HoldOut:
    """The rule that holds out about this fraction of the text, in whole documents where there are some that fit into it.

    Text is measured in bytes of UTF-8, to which tokens are nearly proportional; a document that stands there several times is as
    much as all of them. Where all documents are more than the share, or the others come to less than half of it, the end of one is
    held out. With 0 nothing is.
    """
    if not fraction:
        return HoldOut()
    total, limit = 0, _ALL
    kept: dict[int, tuple[int, int]] = {}  # hash -> bytes of the document, how often it stands there
    for document in documents:
        content = well_formed(document).encode()
        total += len(content)
        if (hash_ := text_hash(content)) < limit:
            kept[hash_] = (len(content), kept.get(hash_, (0, 0))[1] + 1)
        if len(kept) > MAX_KEPT:
            lowest = sorted(kept)[: MAX_KEPT // 2]
            kept, limit = {hash_: kept[hash_] for hash_ in lowest}, lowest[-1] + 1
    documents_ = [(hash_, *kept[hash_]) for hash_ in sorted(kept)]
    return _rule(documents_, fraction, total, is_whole=limit == _ALL)


def _rule(documents: list[tuple[int, int, int]], fraction: float, total: int, *, is_whole: bool) -> HoldOut:
    """The rule for documents as (hash, bytes, how often) in the order of their hashes: all there are, or those with the lowest hashes."""
    wanted, held, before = fraction * total, 0, 0
    too_often = frozenset(hash_ for hash_, size, number in documents if size <= wanted < size * number)
    rule = HoldOut(max_bytes=int(wanted), too_often=too_often)
    for hash_, size, number in documents:
        if (size := size * number) > wanted:
            continue
        if held and held + size - wanted > wanted - held:  # without it the share is nearer
            return replace(rule, below=before + 1)
        held, before = held + size, hash_
        if held >= wanted:
            return replace(rule, below=hash_ + 1)
    if not is_whole:  # so many that a share of the documents is a share of the text
        return replace(rule, below=int(fraction * _ALL))
    if held >= wanted / 2 and held:
        return replace(rule, below=_ALL)
    rest = [(number, hash_) for hash_, size, number in documents if size * number > wanted]
    if not rest:
        return HoldOut()
    number, hash_ = min(rest)
    return HoldOut(divided=hash_, end_bytes=int(wanted / number))


def _place_to_cut(document: str, share: float) -> int:
    """Where the last `share` of a text begins, moved back a little to the end of a paragraph, a line or a word."""
    cut = len(document) - max(1, round(len(document) * share))
    earliest = max(1, cut - max(1, (len(document) - cut) // 4))
    for mark in ("\n\n", "\n", " "):
        if (place := document.rfind(mark, earliest, cut + 1)) > 0 and place + len(mark) < len(document):
            return place + len(mark)
    return cut
