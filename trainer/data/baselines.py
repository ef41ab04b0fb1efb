"""What a model must beat: the loss of two models that only count words.

A loss below `unigram` says that something was learned; a loss below `bigram`, that context is used.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Baselines:
    """Losses on the validation tokens, in nats per token."""

    unigram: float
    bigram: float


def unigram_bigram(train: np.ndarray, validation: np.ndarray, vocab_size: int) -> Baselines:
    """Counts in `train` [n] and measures on `validation` [m], both integer ids below vocab_size.

    source  add-one smoothing for unigrams; for bigrams Witten and Bell 1991: after a word seen n times with t different
            successors, t / (n + t) of the probability is left to the unigram
    """
    assert validation.size, "there is nothing to measure on"
    train = train.astype(np.int64, copy=False)
    validation = validation.astype(np.int64, copy=False)
    unigram = (np.bincount(train, minlength=vocab_size) + 1.0) / (train.size + vocab_size)

    pairs, pair_counts = np.unique(train[:-1] * vocab_size + train[1:], return_counts=True)
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
