"""What a model must beat: the loss of two models that only count words.

A loss below `unigram` says that something was learned; a loss below `bigram`, that context is used.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Baselines:
    """Losses on the validation tokens, in nats per token."""

    unigram: float
    bigram: float


def unigram_bigram(train: np.ndarray, validation: np.ndarray, vocab_size: int, num_workers: int = 1) -> Baselines:
    """Counts in `train` [n], in so many threads, and measures on `validation` [m], both integer ids below vocab_size.

    source  add-one smoothing for unigrams; for bigrams Witten and Bell 1991: after a word seen n times with t different
            successors, t / (n + t) of the probability is left to the unigram
    """
    assert validation.size, "there is nothing to measure on"
    train = train.astype(np.int64, copy=False)
    validation = validation.astype(np.int64, copy=False)
    unigram = (np.bincount(train, minlength=vocab_size) + 1.0) / (train.size + vocab_size)

    pairs, pair_counts = _pairs(train, vocab_size, num_workers)
    first = pairs // vocab_size
    followers = np.bincount(first, weights=pair_counts, minlength=vocab_size)  # [V] how often each word was followed
    kinds = np.bincount(first, minlength=vocab_size)  # [V] by how many different words

    before, after = validation[:-1], validation[1:]
    wanted = before * vocab_size + after
    place = np.searchsorted(pairs, wanted).clip(max=max(0, pairs.size - 1))
    seen = np.where(pairs[place] == wanted, pair_counts[place], 0) if pairs.size else np.zeros(wanted.size)
    total = followers[before] + kinds[before]
    known = total > 0
    left = np.divide(kinds[before], total, out=np.ones(wanted.size), where=known)
    counted = np.divide(seen, total, out=np.zeros(wanted.size), where=known)
    bigram_nats = -np.log(counted + left * unigram[after]).sum() - np.log(unigram[validation[0]])
    return Baselines(float(-np.log(unigram[validation]).mean()), float(bigram_nats / validation.size))


def _pairs(tokens: np.ndarray, vocab_size: int, num_workers: int) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of neighbours, each once, as first * vocab_size + second in ascending order, and how often each stands there.

    A thread sorts the pairs of some first words, as many as the others do.
    """
    first = tokens[:-1]
    until = np.bincount(first, minlength=vocab_size).cumsum()
    begins = [*np.searchsorted(until, first.size * np.arange(1, num_workers) / num_workers), vocab_size]

    def sorted_once(begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        mine = np.flatnonzero((first >= begin) & (first < end))
        return np.unique(first[mine] * vocab_size + tokens[mine + 1], return_counts=True)

    with ThreadPoolExecutor(num_workers) as pool:
        pairs, counts = zip(*pool.map(sorted_once, [0, *begins[:-1]], begins), strict=True)
    return np.concatenate(pairs), np.concatenate(counts)
