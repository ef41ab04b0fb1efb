"""Which part of a model a parameter belongs to, by its name: the embeddings, a block, the final norm, the head.

The names are those of any causal language model of transformers; what has another kind of name is in `other`, never left out.
"""

import os.path
import re
from collections import Counter
from collections.abc import Iterable, Sequence

EMBEDDINGS, FINAL_NORM, HEAD, OTHER = "embeddings", "final_norm", "head", "other"

_EMBEDDING = re.compile(r"emb|^wte$|^wpe$")
_NORM = re.compile(r"norm|(^|_)ln(_|$)")
_HEADS = frozenset({"lm_head", "head", "output", "embed_out", "output_projection"})


def layer_groups(names: Sequence[str]) -> list[str]:
    """The group of each parameter; blocks are `block_00`, `block_01` ..., in as many digits as sort them.

    A head that is tied to the embeddings has no name of its own among a model's parameters: it is in their group.
    """
    blocks = {name: number for name in names if (number := _block(name)) is not None}
    digits = max(2, len(str(max(blocks.values(), default=0))))
    return [f"block_{blocks[name]:0{digits}}" if name in blocks else _outside_blocks(name) for name in names]


def group_order(groups: Iterable[str]) -> list[str]:
    """Each group once, in the order in which a token meets them."""
    stations = (EMBEDDINGS, "", FINAL_NORM, HEAD, OTHER)
    return sorted(set(groups), key=lambda group: (stations.index(group if group in stations else ""), group))


def short_names(names: Sequence[str]) -> list[str]:
    """The names as people say them: `layers.0.mlp.up_proj` for `model.layers.0.mlp.up_proj.weight`; two that would be one stay whole.

    What all blocks have in front of their number but for one word is left out, of other parameters too.
    """
    before_number = [
        parts[: place - 1]
        for name in names
        if (place := _place_of_number(parts := name.split("."))) is not None and place > 1
    ]
    prefix = "".join(f"{part}." for part in os.path.commonprefix(before_number))
    short = [name.removeprefix(prefix).removesuffix(".weight") for name in names]
    seen = Counter(short)
    return [one if seen[one] == 1 else name for name, one in zip(names, short, strict=True)]


def _block(name: str) -> int | None:
    """The first number in a name counts the blocks (a second one, experts, say), unless it counts embeddings."""
    parts = name.split(".")
    place = _place_of_number(parts)
    return None if place is None else int(parts[place])


def _place_of_number(parts: Sequence[str]) -> int | None:
    place = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
    return None if place is None or any(_EMBEDDING.search(part) for part in parts[:place]) else place


def _outside_blocks(name: str) -> str:
    modules = name.split(".")[:-1]
    if _HEADS.intersection(modules):
        return HEAD
    if any(_EMBEDDING.search(module) for module in modules):
        return EMBEDDINGS
    return FINAL_NORM if any(_NORM.search(module) for module in modules) else OTHER
