"""One question of a task: texts to be scored after a context, and which of them is right; read from a row of anybody's file.

    query, choices, gold                           multiple choice; question and label or answer are understood too
    context_options, continuation, gold            which context makes the continuation likely (Winogrande)
    context, continuation                          the last word (LAMBADA)

and the rows of the public sets as their authors published them: see FORMS. The texts that are scored are those of
lm-evaluation-harness: a choice follows its context after one space, whatever it begins with.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trainer.errors import DataError

Row = dict[str, Any]

DELIMITER = " "
"""Stands between a context and what is scored after it."""


@dataclass(frozen=True)
class Item:
    """One question. With several pairs the right one must be the likeliest; with one, each of its tokens must be."""

    where: str
    """File and line, for people."""
    pairs: tuple[tuple[str, str], ...]
    """Context and continuation; only the continuation is scored."""
    gold: int = 0
    """Which pair is the right one."""
    num_characters: tuple[int, ...] | None = None
    """Length of each choice, what acc_norm divides by; None where it has no meaning."""

    @property
    def is_last_word(self) -> bool:
        return len(self.pairs) == 1

    @property
    def form(self) -> str:
        """What tells items apart that cannot stand in one file."""
        if self.is_last_word:
            return "last word"
        return "multiple choice" if self.num_characters else "multiple contexts"


def item(where: str, row: Any) -> Item:
    """The item that a row stands for.

    raises  DataError when the row has the fields of no form, or a field is not what it should be
    """
    if not isinstance(row, dict):
        raise DataError(f"{where} holds {type(row).__name__}; an object was expected: {_EXPECTED}")
    for fields, make in FORMS:
        if all(any(name in row for name in field.split("|")) for field in fields):
            return make(where, row)
    raise DataError(
        f"{where} is no item of a task, its fields are: {', '.join(map(str, row)) or 'none'}; expected were {_EXPECTED}"
    )


_EXPECTED = (
    "query, choices, gold (multiple choice), context_options, continuation, gold (Winogrande), context, continuation (last word), or the "
    "fields of HellaSwag, PIQA, ARC, COPA, Winogrande or LAMBADA as they are published"
)


# Fields


def _text(where: str, row: Row, *names: str) -> str:
    """The text under the first of these names that the row has."""
    name = next(name for name in names if name in row)
    return _is_text(where, name, row[name])


def _is_text(where: str, name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: {name} is {value!r}, and a text was expected; fix it, or leave the line out")
    return value


def _texts(where: str, row: Row, name: str) -> list[str]:
    """At least two texts."""
    value = row[name]
    if not isinstance(value, list) or len(value) < 2:
        raise DataError(
            f"{where}: {name} is {value!r}, and a list of at least two texts was expected; fix it, or leave the line out"
        )
    return [_is_text(where, f"{name}[{number}]", text) for number, text in enumerate(value)]


def _gold(where: str, row: Row, choices: list[str], labels: list[str] | None = None, first: int = 0) -> int:
    """Which choice is right: by its number (counted from `first`), its label or letter, or its text."""
    name = next(name for name in ("gold", "label", "answer", "answerKey") if name in row)
    value = row[name]
    found: int | None = None
    if labels is not None and str(value) in labels:
        found = labels.index(str(value))
    elif isinstance(value, int) and not isinstance(value, bool):
        found = value - first
    elif isinstance(value, str) and re.fullmatch(r"\d+", value):
        found = int(value) - first
    elif isinstance(value, str) and value in choices:
        found = choices.index(value)
    elif isinstance(value, str) and re.fullmatch(r"[A-Z]", value):
        found = ord(value) - ord("A")
    if found is None or not 0 <= found < len(choices):
        raise DataError(
            f"{where}: {name} is {value!r}, which names none of the {len(choices)} choices; a number from {first} to "
            f"{first + len(choices) - 1} was expected (a set without answers cannot be evaluated on)"
        )
    return found


# Forms


def _choice(where: str, context: str, choices: list[str], gold: int) -> Item:
    if "" in choices:
        raise _nothing_to_score(where, f"choice {choices.index('')}")
    pairs = tuple((context, DELIMITER + choice) for choice in choices)
    return Item(where, pairs, gold, tuple(len(choice) for choice in choices))


def _contexts(where: str, contexts: list[str], continuation: str, gold: int = 0) -> Item:
    if not continuation:
        raise _nothing_to_score(where, "the continuation")
    return Item(where, tuple((context, DELIMITER + continuation) for context in contexts), gold)


def _nothing_to_score(where: str, what: str) -> DataError:
    return DataError(f"{where}: {what} is empty, and there is nothing to score; fix it, or leave the line out")


def _plain_choice(where: str, row: Row) -> Item:
    choices = _texts(where, row, "choices")
    return _choice(where, _text(where, row, "query", "question"), choices, _gold(where, row, choices))


def _plain_contexts(where: str, row: Row) -> Item:
    contexts = _texts(where, row, "context_options")
    return _contexts(where, contexts, _text(where, row, "continuation"), _gold(where, row, contexts))


def _plain_last_word(where: str, row: Row) -> Item:
    return _contexts(where, [_text(where, row, "context")], _text(where, row, "continuation"))


def _hellaswag(where: str, row: Row) -> Item:
    activity, begin, end = (_text(where, row, name) for name in ("activity_label", "ctx_a", "ctx_b"))
    context = f"{activity}: {begin} {end.capitalize()}"
    choices = [_without_artifacts(ending) for ending in _texts(where, row, "endings")]
    return _choice(where, _without_artifacts(context), choices, _gold(where, row, choices))


def _without_artifacts(text: str) -> str:
    """HellaSwag's text without the marks that its WikiHow part was cut with."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def _piqa(where: str, row: Row) -> Item:
    choices = [_text(where, row, "sol1"), _text(where, row, "sol2")]
    return _choice(where, f"Question: {_text(where, row, 'goal')}\nAnswer:", choices, _gold(where, row, choices))


def _arc(where: str, row: Row) -> Item:
    options = row["choices"]
    if not isinstance(options, dict) or not {"text", "label"} <= options.keys():
        raise DataError(
            f"{where}: choices is {options!r}, and an object with the lists text and label was expected; fix it"
        )
    choices, labels = _texts(where, options, "text"), _texts(where, options, "label")
    gold = _gold(where, {"answerKey": row["answerKey"]}, choices, labels)
    return _choice(where, f"Question: {_text(where, row, 'question')}\nAnswer:", choices, gold)


def _copa(where: str, row: Row) -> Item:
    joint = {"cause": "because", "effect": "therefore"}.get(row["question"])
    if joint is None:
        raise DataError(f"{where}: question is {row['question']!r}, and cause or effect was expected; fix it")
    choices = [_text(where, row, "choice1"), _text(where, row, "choice2")]
    # The harness has a space of its own before each choice here, besides the one that stands between all contexts and choices.
    lowered = [f" {choice[:1].lower()}{choice[1:]}" for choice in choices]
    return _choice(where, f"{_text(where, row, 'premise').strip()[:-1]} {joint}", lowered, _gold(where, row, choices))


def _winogrande(where: str, row: Row) -> Item:
    before, mark, after = _text(where, row, "sentence").partition("_")
    if not mark:
        raise DataError(f"{where}: sentence has no _ where an option belongs; fix it, or leave the line out")
    contexts = [before + _text(where, row, name) for name in ("option1", "option2")]
    return _contexts(where, contexts, after.strip(), _gold(where, row, contexts, first=1))


def _lambada(where: str, row: Row) -> Item:
    context, _, word = _text(where, row, "text").rpartition(" ")
    return _contexts(where, [context], word)


FORMS: tuple[tuple[tuple[str, ...], Callable[[str, Row], Item]], ...] = (
    (("activity_label", "ctx_a", "ctx_b", "endings", "label"), _hellaswag),
    (("goal", "sol1", "sol2", "label"), _piqa),
    (("question", "choices", "answerKey"), _arc),
    (("premise", "choice1", "choice2", "question", "label"), _copa),
    (("sentence", "option1", "option2", "answer"), _winogrande),
    (("context_options", "continuation", "gold|label|answer"), _plain_contexts),
    (("query|question", "choices", "gold|label|answer"), _plain_choice),
    (("context", "continuation"), _plain_last_word),
    (("text",), _lambada),
)
"""Fields of a row (`a|b`: either), and what makes an item of it; the first that fits counts.

source  lm-evaluation-harness 0.4.13, `doc_to_text`, `doc_to_target` and `doc_to_choice` of the task of each name
"""
