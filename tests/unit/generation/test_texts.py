"""Texts come in order, whole and with the reason of their end, whatever stands beside them; Ctrl+C keeps what was written."""

import sys
from dataclasses import replace

import pytest
import torch

from tests.messages import refuses, says
from tests.unit.model.tiny import tiny_model
from trainer.data.tokenizer import load_tokenizer
from trainer.errors import ConfigError, TrainerError
from trainer.evaluation.generate import Limits, Sampling
from trainer.generation import texts as module
from trainer.generation.texts import Text, continue_texts, exit_code, summary

TOKENIZER = load_tokenizer("bytes")
PROMPTS = ["To be", "", "or not to be, that"]


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama-tied")


def write(model, texts, interrupt_after=None, **settings):
    """Continues texts; gives what was shown, text by text, as pieces with None at each end."""
    said = []

    def show(text, piece):
        said.append((text, piece))
        if len(said) == interrupt_after:
            raise KeyboardInterrupt

    wanted = {
        "sampling": Sampling(temperature=2.0),
        "seed": 3,
        "stops": (),
        "rows_at_once": 2,
    }
    limits = Limits(max_new_tokens=9, sequence_length=32, vocab_size=257, eot_id=TOKENIZER.eot_id)
    continue_texts(
        model, TOKENIZER, texts, limits, **(wanted | settings), show=show, close=lambda text: said.append((text, None))
    )
    return said


def texts_of(prompts=PROMPTS, num_samples=2):
    return [Text(prompt, number) for prompt in prompts for number in range(num_samples)]


def test_a_text_begins_with_bos_where_the_tokenizer_has_one(model, monkeypatch):
    read = []
    monkeypatch.setattr(module, "generate", lambda model, rows, *others: read.extend(row.prompt_ids for row in rows))
    monkeypatch.setattr(sys.modules[__name__], "TOKENIZER", replace(TOKENIZER, bos_id=7, begins_with_bos=True))
    write(model, texts_of(["a"], num_samples=1))
    assert read == [[7, 97]]


@pytest.mark.parametrize("rows_at_once", [1, 2, 4, 99])
def test_a_text_is_the_same_however_many_are_computed_together(model, rows_at_once):
    alone = texts_of()
    for text in alone:
        write(model, [text])
    together = texts_of()
    write(model, together, rows_at_once=rows_at_once)
    assert together == alone
    assert len({text.text for text in alone}) == 6
    assert all(text.ended_by == "max_new_tokens" and text.num_tokens == 9 for text in alone)


def test_what_is_shown_is_what_is_written_in_the_order_of_the_texts(model):
    texts = texts_of()
    said = write(model, texts, rows_at_once=4)
    order = [next(number for number, text in enumerate(texts) if text is shown) for shown, _ in said]
    assert order == sorted(order)
    for text in texts:
        own = [piece for shown, piece in said if shown is text]
        assert own[-1] is None
        assert "".join(own[:-1]) == text.text


def test_one_text_comes_a_token_at_a_time(model):
    said = write(model, [Text("To be")], sampling=Sampling(temperature=0.0))
    assert len(said) == len("".join(piece for _, piece in said[:-1])) + 1


def test_a_text_ends_before_a_stop(model):
    (free,) = texts = [Text("To be")]
    write(model, texts)
    stop = free.text[3:5]
    texts = [Text("To be"), Text("To be", 1)]
    write(model, texts, stops=["never" * 3, stop])
    assert texts[0].ended_by == "stop"
    assert texts[0].text == free.text[: free.text.index(stop)]
    assert texts[0].num_tokens <= 9
    with refuses(ConfigError, "stop", "empty"):
        write(model, [Text("To be")], stops=["a", ""])


def test_ctrl_c_keeps_what_was_written_and_ends_every_text_that_was_begun(model):
    texts = texts_of()
    said = write(model, texts, interrupt_after=3, rows_at_once=2)
    assert [text.ended_by for text in texts] == ["interrupted", "interrupted", None, None, None, None]
    assert 0 < texts[0].num_tokens < 9
    assert [text for text, piece in said if piece is None] == texts[:2]
    assert "".join(piece for text, piece in said if text is texts[1] and piece) == texts[1].text
    assert exit_code(texts) == 130


def test_a_prompt_that_is_too_long_is_refused_before_any_text_comes(model):
    texts = [Text("To be"), Text("x" * 31)]
    with refuses(ConfigError, "prompt", "32 tokens"):
        write(model, texts, rows_at_once=1)
    assert texts[0].num_tokens == 0


def test_a_gpu_that_is_full_is_told(model, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(module, "generate", full)
    with refuses(TrainerError, "2 texts", "--rows-at-once"):
        write(model, texts_of())


def test_the_summary_says_how_fast_and_which_texts_ended_early():
    assert summary([Text("", num_tokens=30, ended_by="max_new_tokens")], 2.0, 128) == "30 tokens in 2s: 15 tokens/s"
    texts = [
        Text("", num_tokens=15, ended_by=reason)
        for reason in ("sequence_length", "sequence_length", "not_finite", "stop")
    ]
    said = summary(texts, 2.0, 128)
    assert "60 tokens" in said
    says(said, "2 of 4", "128 tokens", "1 of 4", "not finite")
    assert exit_code(texts) == 1
    says(summary([Text("", ended_by="interrupted")], 2.0, 128), "interrupted")
    assert exit_code(texts[:2]) == 0
