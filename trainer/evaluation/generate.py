"""What a model writes after some prompts: many rows at once, token by token, without a trace in the run's random state.

All rows stand at the same position. They begin where the shortest prompt ends, and a row whose prompt is longer reads on in it, one token per step,
while the others write. So nothing is padded, which each family of models takes in its own way, and a row's text is what it would be alone.
Keys and values of earlier positions are kept where the model hands them out as `past_key_values`; the few families that do not are computed anew.
"""

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from trainer.errors import ConfigError
from trainer.evaluation.loss import evaluating

_NEARLY_ZERO = 1e-6
"""Below this temperature the likeliest token comes in any case, and logits divided by it may overflow."""

END_OF_TEXT, STOPPED, NOT_FINITE = "end_of_text", "stop", "not_finite"
MAX_NEW_TOKENS, SEQUENCE_LENGTH = "max_new_tokens", "sequence_length"
"""Why a row ends: its model ended the text, whoever listens has enough, its tokens or its positions are used up, the logits are no numbers."""

_NO_TOKEN = -1
"""Chosen where the logits are not finite."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float = 1.0
    """0, or nearly: the likeliest token each time, and nothing else here counts."""
    top_k: int = 0
    """Choose among the k likeliest; 0: among all."""
    top_p: float = 1.0
    """Choose among the likeliest that together hold this share, and never among none."""
    min_p: float = 0.0
    """Choose among those that are at least this share of the likeliest one's probability."""

    @property
    def is_greedy(self) -> bool:
        return self.temperature < _NEARLY_ZERO


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A prompt and how it is continued: all that its text depends on besides the model."""

    prompt_ids: Sequence[int]
    sampling: Sampling = Sampling()
    seed: int = 0
    sample: int = 0
    """Counts the samples of one seed: the random numbers of a row are those of (seed, sample), whatever stands beside it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What ends every row, and the ids that there are."""

    max_new_tokens: int
    sequence_length: int
    """Tokens that a row may have, its prompt included: what the model was trained on."""
    vocab_size: int
    """Real ids; those from here on are padding and never come."""
    eot_id: int | None = None
    """The end of a text, and so of its row."""


@dataclass(frozen=True, slots=True)
class Written:
    """What the model wrote in a row, without prompt and end of text, and why no more came."""

    tokens: list[int]
    ended_by: str


class Tokenizer(Protocol):
    """What turns text into ids, and back."""

    @property
    def start_id(self) -> int:
        """What a text begins with."""

    @property
    def begins_with_bos(self) -> bool:
        """Whether the model has seen that before every text, and not only where nothing else stood before one."""

    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: Iterable[int]) -> str: ...
    def decode_bytes(self, ids: Iterable[int]) -> bytes: ...


class Listener(Protocol):
    """Hears of each row what comes, as soon as it is there."""

    def token(self, row: int, token: int) -> bool:
        """The next token of a row; returns whether the row goes on."""

    def end(self, row: int, ended_by: str) -> None:
        """No more comes in a row."""


def generate(
    model: nn.Module,
    rows: Sequence[Row],
    limits: Limits,
    listener: Listener | None = None,
    *,
    agree_on: Callable[[list[int]], list[int]] = list,
) -> list[Written]:
    """Continues every row, and says for each why it ended; ConfigError when a prompt leaves no position free.

    The global random state stays as it was.

    agree_on  makes of the next token of each row what all ranks go on with, which take the passes of a sharded model together
    """
    assert rows and limits.max_new_tokens > 0, "there is something to continue"
    for row in rows:
        assert row.prompt_ids and all(0 <= i < limits.vocab_size for i in row.prompt_ids), "ids of the vocabulary"
        check_prompt_length(len(row.prompt_ids), limits.sequence_length)
    shortest = min(len(row.prompt_ids) for row in rows)
    lines = [_Line(number, row, shortest, limits, listener) for number, row in enumerate(rows)]
    device = next(model.parameters()).device
    # Nothing here draws from the global random state; a model that does so even in evaluation mode leaves no trace either.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), evaluating(model):
        reader = _Reader(model, limits.vocab_size)
        while not all(line.ended_by for line in lines):
            tokens = _choose_all(reader.logits([line.ids for line in lines]), lines)
            for line, token in zip(lines, agree_on(tokens)):
                line.go_on(token)
    return [Written(line.tokens, line.ended_by or "") for line in lines]


class _Line:
    """A row in progress: it reads its prompt to the end, writes until something ends it, and then only keeps step with the others."""

    def __init__(self, number: int, row: Row, shortest: int, limits: Limits, listener: Listener | None) -> None:
        self._number, self._prompt, self.sampling = number, row.prompt_ids, row.sampling
        self._limits, self._listener = limits, listener
        self._random = np.random.default_rng((row.seed, row.sample))
        self.ids = list(row.prompt_ids[:shortest])
        """What the model has seen, and the one that it sees next; as many as in every other line."""
        self.tokens: list[int] = []
        self.ended_by: str | None = None

    @property
    def _writes(self) -> bool:
        return len(self.ids) >= len(self._prompt) and not self.ended_by

    def uniform(self) -> float:
        """The number in [0, 1) that chooses its next token."""
        return self._random.random() if self._writes else 0.0

    def go_on(self, token: int) -> None:
        """Takes one step, with the token that was chosen for it."""
        if not self._writes:
            self.ids.append(self._prompt[len(self.ids)] if len(self.ids) < len(self._prompt) else 0)
            return
        self.ids.append(max(token, 0))
        self.ended_by = self._take(token)
        if self.ended_by and self._listener:
            self._listener.end(self._number, self.ended_by)

    def _take(self, token: int) -> str | None:
        """Keeps a token; returns what ends the line now."""
        if token in (_NO_TOKEN, self._limits.eot_id):
            return NOT_FINITE if token == _NO_TOKEN else END_OF_TEXT
        self.tokens.append(token)
        if self._listener and not self._listener.token(self._number, token):
            return STOPPED
        if len(self.tokens) == self._limits.max_new_tokens:
            return MAX_NEW_TOKENS
        return SEQUENCE_LENGTH if len(self.ids) == self._limits.sequence_length else None


class _Reader:
    """The model's forward pass over what all lines hold; each position once, where its family can."""

    def __init__(self, model: nn.Module, vocab_size: int) -> None:
        self._model, self._vocab_size, self._cache = model, vocab_size, None
        self._device = next(model.parameters()).device
        has_choice = "logits_to_keep" in inspect.signature(type(model).forward).parameters
        self._last_only = {"logits_to_keep": 1} if has_choice else {}

    def logits(self, ids: list[list[int]]) -> Tensor:
        """Logits of the next token of each line, fp32 [R, V]."""
        unseen = ids if self._cache is None else [line[-1:] for line in ids]
        tokens = torch.tensor(unseen, dtype=torch.long, device=self._device)
        output = self._model(input_ids=tokens, past_key_values=self._cache, use_cache=True, **self._last_only)
        self._cache = getattr(output, "past_key_values", None)
        return output.logits[:, -1, : self._vocab_size].float()


def _choose_all(logits: Tensor, lines: Sequence[_Line]) -> list[int]:
    """The next token of each line; lines that choose alike do so together."""
    uniforms = torch.tensor([line.uniform() for line in lines], dtype=torch.float64)
    tokens = torch.empty(len(lines), dtype=torch.long)
    for sampling in {line.sampling for line in lines}:
        alike = [number for number, line in enumerate(lines) if line.sampling == sampling]
        tokens[alike] = choose(logits[alike], sampling, uniforms[alike])
    return tokens.tolist()


def choose(logits: Tensor, sampling: Sampling, uniforms: Tensor) -> Tensor:
    """A token a row [R] from logits [R, V], on any device, and a number in [0, 1) a row, float64 [R]; -1 where the logits are not finite.

    A row's token stands where its number falls in the cumulated probabilities, likeliest first: a function of its own logits and number.
    They are cumulated on the CPU, since a GPU does not do so in a fixed order.
    """
    # A NaN is the largest of its row; minus infinity is how some families forbid a token.
    is_finite = logits.amax(-1).isfinite().cpu()
    if sampling.is_greedy:
        return logits.argmax(-1).cpu().where(is_finite, _NO_TOKEN)
    values, ids = (part.cpu() for part in logits.topk(min(sampling.top_k or logits.shape[-1], logits.shape[-1])))
    probabilities = (values / sampling.temperature).softmax(-1, dtype=torch.float64)
    above = probabilities.cumsum(-1) - probabilities
    kept = (above < sampling.top_p) & (probabilities >= sampling.min_p * probabilities[:, :1])
    kept[:, 0] = True
    cumulated = (probabilities * kept).cumsum(-1)
    places = torch.searchsorted(cumulated, uniforms[:, None] * cumulated[:, -1:], right=True)
    places = places.minimum(kept.sum(-1, keepdim=True) - 1)  # rounding may lead behind the last that is kept
    return ids.gather(-1, places)[:, 0].where(is_finite, _NO_TOKEN)


def check_prompt_length(num_tokens: int, sequence_length: int) -> None:
    """Refuses a prompt that leaves no position free."""
    if num_tokens >= sequence_length:
        raise ConfigError(
            f"the prompt has {num_tokens} tokens with the end of text before it, and the model was trained on sequences of {sequence_length}, "
            "which leaves none to write; shorten it"
        )


def num_positions(config: Any) -> int:
    """How many positions a model of this transformers config has; without a limit of its own, as many as anyone asks for."""
    for field in ("max_position_embeddings", "max_seq_len", "n_positions"):
        limit = getattr(config, field, None)
        if isinstance(limit, int):
            return limit
    return 2**31
