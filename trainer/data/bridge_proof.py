"""What must hold of a `tokenizers` pipeline for tiktoken to give the same ids, and what is found to differ."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from trainer.byte_level import merged, spelled_bytes
from trainer.data.byte_pairs import reaches_over_spaces
from trainer.data.probe import characters, pages, surrounded

Encode = Callable[[Sequence[str]], list[np.ndarray]]
"""Texts -> the ids of each, [n] uint32."""

# source: Radford et al. 2019, as `tokenizers` splits where a file says ByteLevel and names no pattern
_GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LOOKS_AROUND = re.compile(r"\(\?(?:[=!]|<[=!])|\\[bBAGKX]|(?<![\[\\])\^")
_CHARACTERS_AT_ONCE = 64


class NotBridged(Exception):
    """tiktoken would not give the same ids; the message is the reason."""


def pattern_of(pre_tokenizer: Mapping[str, Any] | None) -> str:
    """The one pattern that splits a text; NotBridged where it is split in another way, or the pattern looks at what is around a piece."""
    steps = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer])
    kinds = [step["type"] if step else None for step in steps]
    if kinds not in (["Split", "ByteLevel"], ["ByteLevel"]):
        raise NotBridged(f"it splits texts by {' and '.join(map(str, kinds))}, not by one pattern into bytes")
    if steps[-1]["add_prefix_space"] or steps[-1].get("use_regex", True) != (len(steps) == 1):
        raise NotBridged("it puts a space before a text, or splits it twice")
    if len(steps) == 1:
        return _GPT2_PATTERN
    split = steps[0]
    if split["behavior"] != "Isolated" or split["invert"] or "Regex" not in split["pattern"]:
        raise NotBridged("it does not split by a regular expression into pieces that stay whole")
    pattern = split["pattern"]["Regex"]
    if found := _LOOKS_AROUND.search(pattern.replace(r"(?!\S)", "")):
        raise NotBridged(f"its pattern looks around a piece ({found.group()})")
    return pattern


def normalizes(normalizer: Mapping[str, Any] | None) -> bool:
    """Whether texts are brought into NFC; NotBridged where something else is done to them."""
    steps = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    kinds = {step["type"] for step in steps}
    if kinds - {"NFC"}:
        raise NotBridged(f"it normalizes texts by {', '.join(sorted(kinds))}")
    return bool(kinds)


def ranks_of(model: Mapping[str, Any]) -> dict[bytes, int]:
    """The bytes of each token of a byte-level BPE and its id; what no text can become is left out. NotBridged for another model."""
    if model["type"] != "BPE" or model["byte_fallback"] or model["dropout"]:
        raise NotBridged(
            f"its model is {model['type']}{' with byte fallback' if model.get('byte_fallback') else ''}, not byte-level BPE"
        )
    if model["continuing_subword_prefix"] or model["end_of_word_suffix"]:
        raise NotBridged("its tokens carry marks of the beginnings or ends of words")
    ranks = {spelled: id for token, id in model["vocab"].items() if (spelled := spelled_bytes(token))}
    if missing := 256 - sum(len(token) == 1 for token in ranks):
        raise NotBridged(f"{missing} of the 256 bytes have no token")
    if token := reaches_over_spaces(ranks):
        raise NotBridged(f"its token {token!r} goes on over a space")
    return ranks


def unreachable(model: Mapping[str, Any], ranks: Mapping[bytes, int]) -> list[int]:
    """Ids of `ranks` that no merge leads to, and that tiktoken must not know; NotBridged where merges are not in the order of ids.

    Both join two neighbours that make a token, the lowest id first (tiktoken any two, `tokenizers` those that are listed). At that
    moment nothing with a lower id can be joined inside the two: they are what merging the token's bytes with lower ids leaves. So
    both join the same where these two are listed; whatever else is listed for the token never stands side by side.
    """
    listed = _merges(model["merges"], ranks)
    known: dict[bytes, int] = {}
    left_out = []
    for token, id in sorted(ranks.items(), key=lambda item: item[1]):
        parts = merged(token, known, id)
        if len(parts) > 2 or (len(parts) == 2 and parts[0] not in listed.get(token, ())):
            if not model["ignore_merges"]:
                left_out.append(id)
                continue
            if len(parts) == 2:  # else a piece that is this token is taken whole, by both
                raise NotBridged(f"its token {token!r} is merged in another way than by the order of ids")
        known[token] = id
    return left_out


def differing(one: Encode, other: Encode) -> list[int]:
    """Code points that two ways to encode take differently; NotBridged where they differ on a page without such a character."""
    blocks = _blocks(characters(), _CHARACTERS_AT_ONCE)
    texts = ["".join(map(surrounded, block)) for block in blocks]
    suspects = [character for block, same in zip(blocks, _equal(one, other, texts)) if not same for character in block]
    verdicts = _equal(one, other, [surrounded(character) for character in suspects])
    found = {character for character, same in zip(suspects, verdicts) if not same}
    if any(character.isascii() for character in found):
        raise NotBridged(f"tiktoken takes the character {min(found)!r} differently")
    texts = [text for text in pages() if not found & set(text)]
    if wrong := [text for text, same in zip(texts, _equal(one, other, texts)) if not same]:
        raise NotBridged(f"tiktoken gives other ids to {min(wrong, key=len)[:60]!r}")
    return sorted(map(ord, found))


def _merges(listed: Sequence[Any], ranks: Mapping[bytes, int]) -> dict[bytes, set[bytes]]:
    """Per token, the left parts that it is merged from; NotBridged where the merges do not stand in the order of the ids they lead to."""
    last = -1
    found: dict[bytes, set[bytes]] = {}
    for merge in listed:
        left, right = map(spelled_bytes, merge.split(" ") if isinstance(merge, str) else merge)
        if left and right and left + right in ranks:
            found.setdefault(left + right, set()).add(left)
            if (id := ranks[left + right]) < last:
                raise NotBridged(f"the merge into its token {left + right!r} does not stand in the order of ids")
            last = id
    return found


def _equal(one: Encode, other: Encode, texts: Sequence[str]) -> Iterator[bool]:
    return (np.array_equal(a, b) for a, b in zip(one(texts), other(texts), strict=True))


def _blocks(items: Sequence[str], size: int) -> list[Sequence[str]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
