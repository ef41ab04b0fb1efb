"""A tokenizer's files beside an exported model, in the form that transformers 4 and 5 both open."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from trainer.byte_level import byte_letters, merged, tokenizer_config


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerFacts:
    """What a tiktoken encoding is made of."""

    ranks: Mapping[bytes, int]
    """Every token's bytes and its id; a lower rank merges first."""
    pattern: str
    """The regular expression that cuts a text into pieces before merging."""
    eot_token: str
    eot_id: int
    vocab_size: int


def save_tokenizer(facts: TokenizerFacts, folder: Path, max_tokens: int | None) -> None:
    """Writes tokenizer.json and tokenizer_config.json; max_tokens is what the model was trained on, None for no limit."""
    build_tokenizer(facts).save(str(folder / "tokenizer.json"))
    config = tokenizer_config(facts.eot_token, max_tokens)
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def build_tokenizer(facts: TokenizerFacts) -> Tokenizer:
    """The `tokenizers` object that gives a text the ids a tiktoken encoding with the same facts gives it."""
    letters = byte_letters()

    def spell(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    vocabulary = {spell(token): rank for token, rank in facts.ranks.items()}
    merges = [(spell(left), spell(right)) for left, right in recover_merges(facts.ranks)]
    vocabulary[facts.eot_token] = facts.eot_id
    # tiktoken takes a piece that is a token as it stands, without merging; so must this.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    split = pre_tokenizers.Split(Regex(facts.pattern), behavior="isolated")
    spelling = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, spelling])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(facts.eot_token, special=True, normalized=False)])
    return tokenizer


def recover_merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The two parts each longer token was merged from, in the order of the merges.

    A token's own bytes are merged again with the ranks below its own: what is left are its two parts. A token that no
    merges reach is left out, and only ever stands for a whole piece.
    """
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            parts = merged(token, ranks, rank)
            if len(parts) == 2:
                merges.append((parts[0], parts[1]))
    return merges
