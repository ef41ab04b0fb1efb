"""Training a byte-level BPE vocabulary and writing it down in tiktoken's form.

A vocabulary is a dict from the bytes of a token to its rank, which is its id. `<|endoftext|>` is not in it: whoever
loads the vocabulary gives it the id after the last rank, so that no text can ever spell it.
"""

import base64
import binascii
from collections.abc import Iterable, Mapping

from trainer.errors import DataError


def byte_letters() -> dict[str, int]:
    """The printable letter that stands for each byte in byte-level BPE files, mapped back to the byte.

    source  Radford et al. 2019 (GPT-2): printable latin-1 bytes stand for themselves, the others for U+0100 onwards
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


def train_bpe(documents: Iterable[str], vocab_size: int) -> dict[bytes, int]:
    """Learns `vocab_size - 1` ranks, all 256 bytes among them; the last id is left for `<|endoftext|>`.

    returns  ranks; fewer than asked when the text has no more pairs to merge
    raises   DataError when vocab_size leaves no room for the 256 bytes

    The answer depends neither on the number of threads nor on the order of the documents.
    """
    if vocab_size < 257:
        raise DataError(
            f"vocab_size {vocab_size} is too small: a byte-level vocabulary holds the 256 bytes and "
            "<|endoftext|>. Ask for 257 or more."
        )
    import tokenizers  # here, because only training needs it

    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    # add_prefix_space would make decode(encode("x")) == " x"; the regex is GPT-2's, which tiktoken splits by too.
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    # Without the whole alphabet, bytes that the text does not contain would be dropped silently when encoding.
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(documents, trainer)
    letters = byte_letters()
    return {bytes(letters[letter] for letter in token): rank for token, rank in model.get_vocab().items()}


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
