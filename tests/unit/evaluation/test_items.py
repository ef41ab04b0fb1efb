"""A row of anybody's file becomes a question, in the harness's words, or an error that names its line."""

import pytest

from tests.messages import refuses
from trainer.errors import DataError
from trainer.evaluation.items import item

CHOICE = {"query": "The sky is", "choices": ["blue", "a cow"], "gold": 1}


def test_a_choice_follows_its_query_after_one_space():
    made = item("here", CHOICE)
    assert made.pairs == (("The sky is", " blue"), ("The sky is", " a cow"))
    assert made.gold == 1
    assert made.num_characters == (4, 5)
    assert made.form == "multiple choice"
    assert not made.is_last_word


@pytest.mark.parametrize("key", ["gold", "label", "answer"])
@pytest.mark.parametrize("value", [1, "1", "a cow", "B"])
def test_the_right_choice_is_a_number_a_text_or_a_letter_under_the_usual_keys(key, value):
    assert item("here", {"question": "The sky is", "choices": ["blue", "a cow"], key: value}).gold == 1


def test_of_contexts_the_continuation_is_scored_and_characters_do_not_count():
    made = item("here", {"context_options": ["Ann so Ann", "Ann so Bea"], "continuation": "won.", "gold": 0})
    assert made.pairs == (("Ann so Ann", " won."), ("Ann so Bea", " won."))
    assert made.num_characters is None
    assert made.form == "multiple contexts"


def test_a_last_word_is_one_pair():
    made = item("here", {"context": "I do not care about", "continuation": "signs"})
    assert made.pairs == (("I do not care about", " signs"),)
    assert made.is_last_word
    assert made.form == "last word"


# The public sets, by rows as their cards document them: expected is what lm-evaluation-harness makes of each


def test_hellaswag():
    row = {
        "ind": 4,
        "activity_label": "Removing ice [title] from car",
        "ctx_a": "Then, the man  writes.",
        "ctx_b": "then a [substeps] woman",
        "ctx": "unused",
        "endings": ["smiles. [title] It ends", "cries"],
        "label": "1",
        "split": "val",
    }
    made = item("here", row)
    context = "Removing ice. from car: Then, the man writes. Then a woman"
    assert made.pairs == ((context, " smiles.. It ends"), (context, " cries"))
    assert made.gold == 1


def test_piqa():
    made = item("here", {"goal": "Dry a cat", "sol1": "Wait.", "sol2": "Wring it.", "label": 0})
    assert made.pairs == (("Question: Dry a cat\nAnswer:", " Wait."), ("Question: Dry a cat\nAnswer:", " Wring it."))
    assert made.gold == 0
    assert made.num_characters == (5, 9)


@pytest.mark.parametrize(("labels", "key", "gold"), [(["A", "B", "C"], "C", 2), (["1", "2", "3"], "1", 0)])
def test_arc_whose_labels_are_letters_or_numbers_from_one(labels, key, gold):
    row = {
        "id": "x",
        "question": "Which?",
        "choices": {"text": ["this", "that", "none"], "label": labels},
        "answerKey": key,
    }
    made = item("here", row)
    assert made.pairs[2] == ("Question: Which?\nAnswer:", " none")
    assert made.gold == gold


@pytest.mark.parametrize(("question", "joint"), [("cause", "because"), ("effect", "therefore")])
def test_copa_with_the_second_space_that_the_harness_has(question, joint):
    row = {
        "premise": "It rained. ",
        "choice1": "The road got wet.",
        "choice2": "I slept.",
        "question": question,
        "idx": 0,
        "label": 0,
    }
    made = item("here", row)
    assert made.pairs == ((f"It rained {joint}", "  the road got wet."), (f"It rained {joint}", "  i slept."))
    assert made.gold == 0


def test_winogrande_whose_options_count_from_one():
    row = {"sentence": "Ann was better than Bea so _ won.", "option1": "Ann", "option2": "Bea", "answer": "2"}
    made = item("here", row)
    assert made.pairs == (("Ann was better than Bea so Ann", " won."), ("Ann was better than Bea so Bea", " won."))
    assert made.gold == 1


def test_lambada_parts_its_text_at_the_last_space():
    assert item("here", {"text": "I do not care about signs"}).pairs == (("I do not care about", " signs"),)
    assert item("here", {"text": "alone"}).pairs == (("", " alone"),)


# What is not right


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (["query"], ["list", "object"]),
        ({"query": "x", "choices": ["a", "b"]}, ["fields", "query, choices"]),
        ({}, ["fields"]),
        ({**CHOICE, "query": 3}, ["query", 3]),
        ({**CHOICE, "choices": ["a"]}, ["choices", "two texts"]),
        ({**CHOICE, "choices": "ab"}, ["choices", "two texts"]),
        ({**CHOICE, "choices": ["a", None]}, ["choices[1]", "None"]),
        ({**CHOICE, "choices": ["a", ""]}, ["choice 1", "empty"]),
        ({**CHOICE, "gold": 2}, ["gold", "2 choices", "0 to 1"]),
        ({**CHOICE, "gold": True}, ["gold", "True"]),
        ({**CHOICE, "gold": -1}, ["gold", "-1"]),
        ({**CHOICE, "gold": "neither"}, ["gold", "'neither'"]),
        ({"context_options": ["a", "b"], "continuation": "", "gold": 0}, ["continuation", "empty"]),
        ({"context": "a", "continuation": ""}, ["continuation", "empty"]),
        (
            {"question": "x", "choices": ["a", "b"], "answerKey": "A"},
            ["text", "label"],
        ),
        (
            {"premise": "x", "choice1": "a", "choice2": "b", "question": "why", "label": 0},
            ["cause", "effect"],
        ),
        ({"sentence": "no mark", "option1": "a", "option2": "b", "answer": "1"}, ["sentence", "_"]),
        ({"sentence": "a _ b", "option1": "a", "option2": "b", "answer": ""}, ["1 to 2"]),
    ],
)
def test_a_row_that_is_not_right_is_refused_with_its_place(row, words):
    with refuses(DataError, "file, line 3", *words):
        item("file, line 3", row)
