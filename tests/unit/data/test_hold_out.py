"""The share that is held out, also of text that stands there many times."""

import random

import pytest

from trainer.data.hold_out import choose, text_hash


def share(documents, rule):
    """Of the text, what is held out; and no text may be on both sides."""
    parts = [part for document in documents for part in rule.parts(document)]
    train, held = ([text for split, text in parts if split == wanted] for wanted in ("train", "validation"))
    assert not set(train) & set(held)
    return sum(map(len, held)) / sum(map(len, train + held))


def text_of(number, size):
    letters = random.Random(number)
    return "".join(letters.choice("abcd ") for _ in range(size))


@pytest.mark.parametrize("most_kept", [200_000, 100])
def test_a_document_that_stands_there_many_times_does_not_carry_the_share_away(monkeypatch, most_kept):
    monkeypatch.setattr("trainer.data.hold_out.MAX_KEPT", most_kept)
    others = [text_of(number, 300) for number in range(300)]
    first = min((f"licence {number} " * 27 for number in range(2000)), key=lambda text: text_hash(text.encode()))
    documents = others + [first] * 100
    assert 0.01 <= share(documents, choose(documents, 0.02)) <= 0.03


def test_the_ends_of_a_document_that_stands_there_several_times_are_the_share_together():
    documents = [text_of(1, 20_000)] * 3
    assert 0.04 <= share(documents, choose(documents, 0.05)) <= 0.06


def test_short_documents_that_all_stand_there_too_often_are_divided():
    documents = [text_of(1, 900), text_of(2, 900)] * 20
    assert 0.02 <= share(documents, choose(documents, 0.05)) <= 0.08
