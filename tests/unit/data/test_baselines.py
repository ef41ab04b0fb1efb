"""The two counting models, against the same arithmetic written out by hand."""

import math
from collections import Counter

import numpy as np
import pytest

from trainer.data.baselines import unigram_bigram


def by_hand(train: list[int], validation: list[int], vocab_size: int) -> tuple[float, float]:
    unigrams, pairs = Counter(train), Counter(zip(train, train[1:]))

    def unigram(word: int) -> float:
        return (unigrams[word] + 1) / (len(train) + vocab_size)

    def bigram(before: int, word: int) -> float:
        successors = {b: n for (a, b), n in pairs.items() if a == before}
        if not successors:
            return unigram(word)
        kinds, total = len(successors), sum(successors.values())
        return (successors.get(word, 0) + kinds * unigram(word)) / (total + kinds)

    nats = [-math.log(unigram(word)) for word in validation]
    chained = [nats[0]] + [-math.log(bigram(a, b)) for a, b in zip(validation, validation[1:])]
    return sum(nats) / len(nats), sum(chained) / len(chained)


@pytest.mark.parametrize(("train_size", "vocab_size"), [(400, 20), (5, 20), (1, 3), (0, 3)])
def test_both_losses_are_those_counted_by_hand(train_size, vocab_size):
    random = np.random.default_rng(train_size)
    train, validation = random.integers(0, vocab_size, train_size), random.integers(0, vocab_size, 60)
    found = unigram_bigram(train.astype(np.uint16), validation.astype(np.uint16), vocab_size)
    assert (found.unigram, found.bigram) == pytest.approx(by_hand(train.tolist(), validation.tolist(), vocab_size))


def test_the_bigram_probabilities_of_all_words_sum_to_one():
    train = np.random.default_rng(0).integers(0, 12, 100)
    # One validation pair at a time: its two losses tell the probability of the second word after the first.
    first = unigram_bigram(train, np.array([4]), 12).bigram
    total = sum(math.exp(first - 2 * unigram_bigram(train, np.array([4, word]), 12).bigram) for word in range(12))
    assert total == pytest.approx(1.0)


def test_text_with_structure_is_easier_for_the_bigram_model():
    text = np.tile(np.arange(50), 40)
    found = unigram_bigram(text, text[:500], 50)
    assert found.unigram == pytest.approx(math.log(50), abs=0.01)
    assert found.bigram < 0.2


@pytest.mark.parametrize("train_size", [0, 1, 2, 500])
@pytest.mark.parametrize("num_workers", [2, 3, 7])
def test_the_losses_do_not_depend_on_the_number_of_threads(train_size, num_workers):
    random = np.random.default_rng(train_size)
    train = np.minimum(random.integers(0, 40, train_size), 20)  # one word more often than a thread's share
    alone = unigram_bigram(train, train[:100] if train_size else np.array([3]), 40)
    assert unigram_bigram(train, train[:100] if train_size else np.array([3]), 40, num_workers) == alone
