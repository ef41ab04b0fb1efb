"""The parameters of a model as plain data, and what can be counted of them; for whoever must answer without torch."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trainer.experts import active_share
from trainer.text import count

VOCABULARY_MULTIPLE = 64
"""Rows of the embedding are padded to a multiple of this: matrix units want dimensions of 8 to 64, fp8 needs 16."""


def padded_vocabulary(vocab_size: int) -> int:
    """The number of rows of embedding and head: the vocabulary rounded up to a multiple of 64."""
    return -(-vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterCounts:
    """Numbers of parameters; one that is tied counts once."""

    total: int
    non_embedding: int
    """Without the tables that tokens and positions are looked up in; the head is one of them where it is tied."""
    active: int
    """Those that a token meets: of experts, as many as are drawn for it."""

    @property
    def words(self) -> str:
        """How many, for people."""
        active = f", {count(self.active)} active a token" if self.active < self.total else ""
        return f"{count(self.total)} parameters ({count(self.non_embedding)} without embeddings{active})"


@dataclass(frozen=True, slots=True)
class Weight:
    """One parameter."""

    name: str
    shape: tuple[int, ...]
    is_table: bool = False
    """Whether tokens or positions are looked up in it; the head too, where it is tied to one."""
    is_head: bool = False
    """Whether it gives the logits."""
    is_trained: bool = True
    share: float = 1.0
    """Of it, what a token meets: less than 1 for experts."""

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def is_product(self) -> bool:
        """Whether a token is multiplied with it."""
        return len(self.shape) >= 2 and not self.is_table and not self.name.endswith("bias")


@dataclass(frozen=True)
class Shapes:
    """A model: its parameters in their order, and the sizes of a block."""

    model_type: str
    weights: tuple[Weight, ...]
    num_layers: int
    hidden: int
    attention_width: int
    """Layers with attention x heads x size of a head, which decides about the scores."""
    query_width: int
    """Numbers of one token that a block's attention gives; 0 without attention."""
    scores_kept: int = 0
    """Numbers that a block keeps for each pair of a token and one before it: 2 a head where its logits are capped, which no kernel does in pieces."""

    @property
    def counts(self) -> ParameterCounts:
        """As parameter_counts counts them."""
        total = sum(weight.numel for weight in self.weights)
        tables = sum(weight.numel for weight in self.weights if weight.is_table)
        idle = sum(weight.numel * (1 - weight.share) for weight in self.weights)
        return ParameterCounts(total=total, non_embedding=total - tables, active=total - round(idle))

    @property
    def kept_by_norms(self) -> int:
        """Numbers of one token that norms behind a block's products keep: of queries and keys, and of what goes back into the stream."""
        ends = {weight.name.rpartition(".layers.")[2].partition(".")[2]: weight for weight in self.weights}
        of_heads = 0
        if "self_attn.q_norm.weight" in ends and "self_attn.k_proj.weight" in ends:
            of_heads = self.query_width + ends["self_attn.k_proj.weight"].shape[0]
        return of_heads + (3 * self.hidden if "post_feedforward_layernorm.weight" in ends else 0)

    @property
    def head(self) -> Weight:
        return next(weight for weight in self.weights if weight.is_head)

    def flops_per_token(self, sequence_length: int) -> float:
        """As flops.py's function of this name: PaLM's convention, forward and backward."""
        products = sum(weight.numel * weight.share for weight in self.weights if weight.is_product)
        tied_head = self.head.numel if self.head.is_table else 0
        return 6.0 * (products + tied_head) + 12.0 * self.attention_width * sequence_length

    @property
    def block_weights(self) -> tuple[Weight, ...]:
        """Those of the blocks: all but tables and head."""
        return tuple(weight for weight in self.weights if not weight.is_table and not weight.is_head)


def with_shares(weights: list[Weight], field: Callable[[str], Any]) -> tuple[Weight, ...]:
    """The weights, each with the share of it that a token meets; `field` gives a field of the config."""
    return tuple(
        Weight(w.name, w.shape, w.is_table, w.is_head, w.is_trained, active_share(w.name, w.shape, field))
        for w in weights
    )
