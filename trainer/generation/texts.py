"""Texts that a model continues, shown as they come: prompts in, pieces of text out."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, TextIO

import torch
from torch import nn

from trainer.errors import ConfigError, TrainerError, is_out_of_memory
from trainer.evaluation.generate import (
    NOT_FINITE,
    SEQUENCE_LENGTH,
    Limits,
    Row,
    Sampling,
    Tokenizer,
    check_prompt_length,
    generate,
)
from trainer.generation.stream import InOrder, TextStream
from trainer.text import count, duration

INTERRUPTED = "interrupted"
"""Why a text ends, besides the reasons of `generate`: somebody pressed Ctrl+C."""

_REMARKS = {
    SEQUENCE_LENGTH: "ended because the model was trained on sequences of {sequence_length} tokens, prompt included",
    NOT_FINITE: "ended because the logits are not finite: the weights are damaged or diverged; take an older checkpoint",
    INTERRUPTED: "ended because it was interrupted",
}
"""What is printed of texts that end early, by the reason."""


@dataclass(slots=True)
class Text:
    """A prompt, and what the model has written after it so far."""

    prompt: str
    sample: int = 0
    """Which of the texts that continue this prompt."""
    text: str = ""
    num_tokens: int = 0
    ended_by: str | None = None
    """None while it goes on."""


def continue_texts(
    model: nn.Module,
    tokenizer: Tokenizer,
    texts: Sequence[Text],
    limits: Limits,
    *,
    sampling: Sampling,
    seed: int,
    stops: Sequence[str],
    rows_at_once: int,
    show: Callable[[Text, str], None],
    close: Callable[[Text], None],
) -> None:
    """Continues texts, `rows_at_once` of them together; what a text becomes does not depend on those beside it.

    stops   a text ends before the first of these
    show    called with each piece as soon as it is certain, for one text after the other
    close   called when a text has ended
    raises  ConfigError when a prompt leaves no position free or a stop is empty, TrainerError when they do not fit into a GPU's memory

    KeyboardInterrupt ends all of them where they are.
    """
    if not all(stops):
        raise ConfigError(
            "a text to stop at is empty, and every text holds that; leave it out, or give one of at least a character"
        )
    prompts = [[tokenizer.start_id, *tokenizer.encode(text.prompt)] for text in texts]
    for prompt in prompts:
        check_prompt_length(len(prompt), limits.sequence_length)
    row = partial(Row, sampling=sampling, seed=seed)
    rows = [row(prompt_ids=prompt, sample=text.sample) for prompt, text in zip(prompts, texts)]
    for begin in range(0, len(texts), rows_at_once):
        scribe = _Scribe(texts[begin : begin + rows_at_once], tokenizer, stops, show, close)
        try:
            generate(model, rows[begin : begin + rows_at_once], limits, scribe)
        except KeyboardInterrupt:
            scribe.interrupt()
            return
        except (MemoryError, RuntimeError) as error:
            on_gpu = isinstance(error, torch.OutOfMemoryError)
            whose = "the GPU's" if on_gpu else "this machine's"
            if not on_gpu and not is_out_of_memory(error):
                raise
            raise TrainerError(
                f"{min(rows_at_once, len(texts))} texts at once do not fit into {whose} memory beside what is "
                f"in it; lower --rows-at-once{', or compute on the CPU: CUDA_VISIBLE_DEVICES= before the command' if on_gpu else ''}"
            ) from None


class TextPrinter:
    """Prints texts as they come, for `continue_texts`: one alone as it is, several each under its number, for programs a JSON object each."""

    def __init__(
        self, texts: Sequence[Text], out: TextIO, *, as_json: bool, facts: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        """`facts`: of what wrote the texts, for programs: a part of each object."""
        self._texts, self._out, self._as_json, self._facts = texts, out, as_json, facts
        self._num_begun = 0

    def show(self, text: Text, piece: str) -> None:
        if not self._as_json:
            self._begin(text)
            self._write(piece)

    def close(self, text: Text) -> None:
        if not self._as_json:
            self._begin(text)
        self._write(f"{json.dumps({**asdict(text), **self._facts})}\n" if self._as_json else "\n")

    def _begin(self, text: Text) -> None:
        """Writes what stands before a text, once."""
        if self._num_begun and text is self._texts[self._num_begun - 1]:
            return
        self._num_begun += 1
        gap = "\n" if self._num_begun > 1 else ""
        number = f"{gap}==> {self._num_begun} of {len(self._texts)} <==\n" if len(self._texts) > 1 else ""
        self._write(number + text.prompt)

    def _write(self, words: str) -> None:
        self._out.write(words)
        self._out.flush()


def summary(texts: Sequence[Text], seconds: float, sequence_length: int) -> str:
    """How fast the texts came, and what a person would not see from them."""
    num_tokens = sum(text.num_tokens for text in texts)
    lines = [f"{num_tokens} tokens in {duration(seconds)}: {count(num_tokens / seconds)} tokens/s"]
    for reason, words in _REMARKS.items():
        if ended := sum(text.ended_by == reason for text in texts):
            which = "the text" if len(texts) == 1 else f"{ended} of {len(texts)} texts"
            lines.append(f"{which} {words.format(sequence_length=sequence_length)}")
    return "; ".join(lines)


def exit_code(texts: Sequence[Text]) -> int:
    """0; 130 after Ctrl+C, as a shell has it; 1 where a model's logits are not finite."""
    reasons = {text.ended_by for text in texts}
    return 130 if INTERRUPTED in reasons else 1 if NOT_FINITE in reasons else 0


class _Scribe:
    """Listens to rows, and writes down and shows their text."""

    def __init__(
        self,
        texts: Sequence[Text],
        tokenizer: Tokenizer,
        stops: Sequence[str],
        show: Callable[[Text, str], None],
        close: Callable[[Text], None],
    ) -> None:
        self._texts, self._tokenizer = texts, tokenizer
        self._streams = [TextStream(stops) for _ in texts]
        self._order = InOrder(lambda row, piece: show(texts[row], piece), lambda row: close(texts[row]))

    def token(self, row: int, token: int) -> bool:
        self._texts[row].num_tokens += 1
        self._add(row, self._streams[row].feed(self._tokenizer.decode_bytes([token])))
        return not self._streams[row].is_stopped

    def end(self, row: int, ended_by: str) -> None:
        self._add(row, self._streams[row].end())
        self._texts[row].ended_by = ended_by
        self._order.end(row)

    def interrupt(self) -> None:
        """Ends what has not ended."""
        for row, text in enumerate(self._texts):
            if not text.ended_by:
                self.end(row, INTERRUPTED)

    def _add(self, row: int, piece: str) -> None:
        self._texts[row].text += piece
        self._order.write(row, piece)
