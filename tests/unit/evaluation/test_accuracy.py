"""Decisions and numbers by hand: ties, lengths, errors, what is not finite."""

import math

import pytest

from trainer.evaluation.accuracy import decide, result
from trainer.evaluation.items import item
from trainer.evaluation.scoring import Encoded, TextScore
from trainer.evaluation.tasks import Task

NAN, INF = math.nan, math.inf


def choices(*texts, gold=0):
    return item("here", {"query": "q", "choices": list(texts), "gold": gold})


def decided(items, sums, greedy=False):
    """The decisions and the result when the pairs have these log-likelihoods, item by item."""
    task = Task("t", tuple(items))
    rows, numbers = [], []
    for some in sums:
        numbers.append(tuple(range(len(rows), len(rows) + len(some))))
        rows += [TextScore(value, greedy) for value in some]
    decisions = decide(Encoded(task, (), tuple(numbers)), rows)
    return decisions, result(task, decisions)


def test_the_likeliest_is_chosen_and_by_character_the_likeliest_a_character():
    decisions, found = decided([choices("ab", "abcdefgh", gold=1)], [[-2.0, -4.0]])
    assert (decisions[0].choice, decisions[0].choice_norm) == (0, 1)
    assert decisions[0].log_likelihoods == (-2.0, -4.0)
    assert (found.acc, found.acc_norm, found.chance, found.perplexity) == (0.0, 1.0, 0.5, None)


def test_of_equals_the_first_is_chosen_however_many_there_are():
    decisions, _ = decided([choices("ab", "cd", "ef", "gh")] * 2, [[-3.0, -2.0, -2.0, -2.0], [-2.0] * 4])
    assert [(d.choice, d.choice_norm) for d in decisions] == [(1, 1), (0, 0)]


def test_what_is_no_number_is_never_chosen():
    decisions, found = decided([choices("ab", "cd"), choices("ab", "cd")], [[NAN, -5.0], [NAN, NAN]])
    assert [d.choice for d in decisions] == [1, None]
    assert found.acc == 0.0
    assert found.num_not_finite == 2


def test_a_choice_that_is_impossible_loses_to_any_other():
    assert decided([choices("ab", "cd")], [[-INF, -5.0]])[0][0].choice == 1


def test_contexts_have_no_accuracy_by_character():
    one = item("here", {"context_options": ["a long one", "b"], "continuation": "c", "gold": 1})
    decisions, found = decided([one], [[-3.0, -2.0]])
    assert decisions[0].choice == decisions[0].choice_norm == 1
    assert (found.acc, found.acc_norm, found.acc_norm_stderr, found.chance) == (1.0, None, None, 0.5)


@pytest.mark.parametrize("greedy", [True, False])
def test_a_last_word_is_right_when_it_is_the_likeliest_and_has_a_perplexity(greedy):
    one = item("here", {"context": "a", "continuation": "b"})
    _, found = decided([one, one], [[-1.0], [-3.0]], greedy)
    assert found.acc == float(greedy)
    assert found.perplexity == pytest.approx(math.exp(2.0))
    assert (found.acc_norm, found.chance) == (None, None)


def test_a_perplexity_beyond_a_float_is_infinite():
    one = item("here", {"context": "a", "continuation": "b"})
    assert decided([one], [[-1e6]])[1].perplexity == decided([one], [[-INF]])[1].perplexity == INF


def test_a_perplexity_of_what_is_no_number_is_none_either():
    one = item("here", {"context": "a", "continuation": "b"})
    _, found = decided([one, one], [[NAN], [-1.0]])
    assert math.isnan(found.perplexity)
    assert found.num_not_finite == 1


def test_the_standard_error_is_that_of_a_mean_of_zeros_and_ones():
    rights = [1, 1, 1, 0]
    _, found = decided([choices("ab", "cd")] * 4, [[-1.0, -2.0] if right else [-2.0, -1.0] for right in rights])
    mean = sum(rights) / 4
    deviation = math.sqrt(sum((right - mean) ** 2 for right in rights) / 3)
    assert found.acc == 0.75
    assert found.acc_stderr == pytest.approx(deviation / math.sqrt(4)) == found.acc_norm_stderr


def test_one_item_has_no_standard_error():
    assert decided([choices("ab", "cd")], [[-1.0, -2.0]])[1].acc_stderr is None


def test_a_run_writes_down_what_there_is():
    _, found = decided([choices("ab", "cd")], [[-1.0, -2.0]])
    assert found.facts() == {"t/acc": 1.0, "t/acc_norm": 1.0, "t/chance": 0.5}
    _, word = decided([item("here", {"context": "a", "continuation": "b"})], [[0.0]], True)
    assert word.facts() == {"t/acc": 1.0, "t/perplexity": 1.0}
