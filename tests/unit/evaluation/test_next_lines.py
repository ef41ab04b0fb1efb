"""The built-in task: the same questions for ever, made of the held-out play alone."""

import hashlib
from collections import Counter

import pytest

from trainer.data.assets import embedded_documents
from trainer.evaluation.next_lines import CONTEXT_CHARACTERS, MAX_DIFFERENCE, NUM_ITEMS, next_line_items


@pytest.fixture(scope="module")
def items():
    return next_line_items(embedded_documents("shakespeare", "validation"))


def test_the_questions_are_the_same_everywhere_and_for_ever(items):
    """Numbers of another version of the task would not compare: whoever changes it gives it another name."""
    content = repr([(item.pairs, item.gold) for item in items])
    assert hashlib.sha256(content.encode()).hexdigest()[:16] == "f4e34f13de71a54a"


def test_there_are_300_of_four_choices_with_the_true_line_in_every_place(items):
    assert len(items) == NUM_ITEMS
    assert all(len(set(item.pairs)) == 4 for item in items)
    golds = Counter(item.gold for item in items)
    assert set(golds) == {0, 1, 2, 3}
    assert min(golds.values()) > NUM_ITEMS // 6


def test_context_and_true_line_stand_together_in_the_play_and_the_others_elsewhere_in_it(items):
    play = "\n".join(embedded_documents("shakespeare", "validation"))
    for item in items:
        for number, (context, line) in enumerate(item.pairs):
            assert line.startswith("\n")
            assert line in play
            assert (context + line in play) == (number == item.gold)


def test_choices_are_of_nearly_the_same_length_and_contexts_short(items):
    for item in items:
        true = item.num_characters[item.gold]
        assert all(abs(length - true) <= MAX_DIFFERENCE for length in item.num_characters)
        assert item.num_characters == tuple(len(line) - 1 for _, line in item.pairs)
        context = item.pairs[0][0]
        assert context
        assert len(context) <= CONTEXT_CHARACTERS or "\n" not in context


def test_no_line_stands_in_the_plays_that_are_trained_on(items):
    trained_on = {line.strip() for scene in embedded_documents("shakespeare", "train") for line in scene.split("\n")}
    assert not [line for item in items for _, line in item.pairs if line.strip() in trained_on]
