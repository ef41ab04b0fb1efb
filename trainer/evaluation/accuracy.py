"""What came of a task: accuracy, plain and normalised by length, with its standard error; perplexity of a last word."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.evaluation.items import Item
from trainer.evaluation.scoring import Encoded, TextScore
from trainer.evaluation.tasks import Task


@dataclass(frozen=True)
class Decision:
    """What a model decided on one item; None where its scores are no numbers."""

    choice: int | None
    """The likeliest pair; of a last word 0 when each of its tokens was the likeliest, else None."""
    choice_norm: int | None
    """The likeliest a character; the same as `choice` where characters have no meaning."""
    log_likelihoods: tuple[float, ...]
    """Of each pair, nats."""


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """A task's numbers. None where the task has no such number; a standard error wants two items at least."""

    task: str
    num_items: int
    acc: float
    acc_stderr: float | None
    acc_norm: float | None
    """Accuracy when each log-likelihood is divided by the characters of its choice."""
    acc_norm_stderr: float | None
    chance: float | None
    """Accuracy of guessing."""
    perplexity: float | None
    """exp of the mean negative log-likelihood of the last word, all its tokens together."""
    num_not_finite: int
    """Items with a score that is not finite; they count as wrong."""

    def facts(self) -> dict[str, float]:
        """What a run writes down, under the task's name."""
        names = ("acc", "acc_norm", "chance", "perplexity")
        return {f"{self.task}/{name}": value for name in names if (value := getattr(self, name)) is not None}


def decide(encoded: Encoded, scores: Sequence[TextScore]) -> list[Decision]:
    """The decision on each item, from the scores of the rows."""
    pairs = zip(encoded.task.items, encoded.row_of_pair, strict=True)
    return [_decide(item, [scores[row] for row in rows]) for item, rows in pairs]


def _decide(item: Item, scores: list[TextScore]) -> Decision:
    sums = [score.log_likelihood for score in scores]
    if item.is_last_word:
        right = 0 if scores[0].is_greedy else None
        return Decision(right, right, tuple(sums))
    a_character = [one / length for one, length in zip(sums, item.num_characters or [1] * len(sums), strict=True)]
    return Decision(_best(sums), _best(a_character), tuple(sums))


def _best(values: Sequence[float]) -> int | None:
    """The first of the largest, as numpy's argmax; what is not finite is never the best."""
    real = [number for number, value in enumerate(values) if not math.isnan(value)]
    return max(real, key=lambda number: values[number], default=None)


def result(task: Task, decisions: Sequence[Decision]) -> TaskResult:
    """The numbers of a task, from the decisions on its items."""
    rights = [decision.choice == item.gold for item, decision in zip(task.items, decisions, strict=True)]
    rights_norm = [decision.choice_norm == item.gold for item, decision in zip(task.items, decisions, strict=True)]
    has_norm, is_last_word = task.items[0].num_characters is not None, task.items[0].is_last_word
    return TaskResult(
        task=task.name,
        num_items=len(rights),
        acc=sum(rights) / len(rights),
        acc_stderr=_standard_error(rights),
        acc_norm=sum(rights_norm) / len(rights) if has_norm else None,
        acc_norm_stderr=_standard_error(rights_norm) if has_norm else None,
        chance=task.chance,
        perplexity=_perplexity([decision.log_likelihoods[0] for decision in decisions]) if is_last_word else None,
        num_not_finite=sum(any(map(math.isnan, decision.log_likelihoods)) for decision in decisions),
    )


def _standard_error(rights: Sequence[bool]) -> float | None:
    """Of a mean of zeros and ones: the sample's standard deviation over the root of its size."""
    number = len(rights)
    if number < 2:
        return None
    mean = sum(rights) / number
    return math.sqrt(mean * (1 - mean) / (number - 1))


def _perplexity(log_likelihoods: Sequence[float]) -> float:
    """Infinite where it is beyond a float, and NaN where one of them is."""
    mean = -math.fsum(log_likelihoods) / len(log_likelihoods)
    return math.inf if mean >= 700 else math.exp(mean)
