"""A byte-level BPE vocabulary in tiktoken's form.

A vocabulary is a dict from the bytes of a token to its rank, which is its id. `<|endoftext|>` is not in it: whoever
loads the vocabulary gives it the id after the last rank, so that no text can ever spell it.
"""

import base64
import binascii
from collections.abc import Mapping

from trainer.errors import DataError


def tiktoken_lines(ranks: Mapping[bytes, int]) -> bytes:
    """A vocabulary as the content of a `.tiktoken` file: a token in base64 and its rank on each line, in rank order."""
    ordered = sorted(ranks.items(), key=lambda item: item[1])
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ordered)


def parse_tiktoken(content: bytes, name: str) -> dict[bytes, int]:
    """Reads the content of a `.tiktoken` file.

    raises  DataError when a line is not a token and a rank, a token or a rank stands twice, or one of the 256 bytes is
            missing
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise DataError(
                f"{name}, line {number}: {line[:60]!r} is not a token in base64 and its rank. Expected a vocabulary "
                "in tiktoken's form."
            ) from None
        if len(ranks) != number or int(rank) < 0:
            raise DataError(f"{name}, line {number}: the token stands twice, or its rank {int(rank)} is negative.")
    if len(set(ranks.values())) != len(ranks):
        raise DataError(f"{name}: two tokens have the same rank, so ids could not be turned back into text.")
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise DataError(
            f"{name}: {len(missing)} of the 256 single bytes are missing (the first is {missing[0]:#04x}), so some "
            "text could not be encoded. Train the vocabulary with the whole byte alphabet."
        )
    return ranks
