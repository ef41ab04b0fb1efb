"""Byte-level BPE as vocabularies write it down: a letter for each byte, and what a token is merged from."""

from collections.abc import Mapping


def byte_letters() -> list[str]:
    """The printable letter that stands for each byte in a byte-level vocabulary.

    source  GPT-2's convention: printable Latin-1 stands for itself, the others for U+0100 on, in order
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def merged(token: bytes, ranks: Mapping[bytes, int], below: int) -> list[bytes]:
    """What byte-pair merging makes of `token` with the ranks below `below`."""
    parts = [token[i : i + 1] for i in range(len(token))]
    pairs = [ranks.get(left + right, below) for left, right in zip(parts, parts[1:])]
    while pairs and (rank := min(pairs)) < below:
        place = pairs.index(rank)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
        del pairs[place]
        if place:
            pairs[place - 1] = ranks.get(parts[place - 1] + parts[place], below)
        if place < len(pairs):
            pairs[place] = ranks.get(parts[place] + parts[place + 1], below)
    return parts


_BYTES = str.maketrans({letter: chr(byte) for byte, letter in enumerate(byte_letters())})
_LETTERS = frozenset(byte_letters())


def spelled_bytes(token: str) -> bytes | None:
    """The bytes that a token of a byte-level vocabulary spells; None where it holds anything but letters of bytes."""
    return token.translate(_BYTES).encode("latin-1") if _LETTERS.issuperset(token) else None
