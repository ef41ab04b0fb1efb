"""What tests need of a corpus beyond the product: its bytes checked against its manifest, and a vocabulary trained from text."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trainer import files
from trainer.data.manifest import missing_shards, read_manifest
from trainer.model.tokenizer_files import byte_letters


def verify_corpus(folder: Path) -> dict[str, Any]:
    """Reads every shard and compares its sha256 with the manifest, which is returned; AssertionError with what is wrong."""
    manifest = read_manifest(folder)
    assert manifest is not None, f"{folder} has no manifest"
    problems = missing_shards(folder, manifest) or [
        f"{shard['file']} has another sha256"
        for shard in manifest["shards"]
        if files.sha256(Path(folder) / shard["file"]) != shard["sha256"]
    ]
    assert not problems, "; ".join(problems)
    return manifest


def train_bpe(documents: Iterable[str], vocab_size: int) -> dict[bytes, int]:
    """Learns `vocab_size - 1` ranks, all 256 bytes among them; the last id is left for `<|endoftext|>`.

    returns  ranks; fewer than asked when the text has no more pairs to merge

    The answer depends neither on the number of threads nor on the order of the documents.
    """
    assert vocab_size >= 257, "256 bytes and <|endoftext|>"
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
    letters = {letter: byte for byte, letter in enumerate(byte_letters())}
    return {bytes(letters[letter] for letter in token): rank for token, rank in model.get_vocab().items()}
