"""Byte-level BPE as vocabularies write it down: a letter for each byte, what a token is merged from, and what stands beside them."""

from collections.abc import Mapping
from typing import Any


def byte_letters() -> list[str]:
    """The printable letter that stands for each byte in a byte-level vocabulary.

    source  GPT-2's convention: printable Latin-1 stands for itself, the others for U+0100 on, in order
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def tokenizer_config(end: str, max_tokens: int | None = None) -> dict[str, Any]:
    """The tokenizer_config.json of a vocabulary with one special token that begins and ends texts, in the form that transformers 4 and 5 open.

    It is written here and not by transformers: its version 5 names a class that version 4 does not know. Padding has no id of its own:
    what is padded is masked, and `end` stands there, before the text, so that `generate` goes on from its end. Version 4 would also hand
    out token types, which no model of ours takes.

    max_tokens  that a model takes; None for no limit
    """
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end,
        "eos_token": end,
        "pad_token": end,
        "padding_side": "left",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": max_tokens or int(1e30),
        "clean_up_tokenization_spaces": False,
    }


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
