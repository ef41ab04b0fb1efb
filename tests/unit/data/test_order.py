"""The order of sequences is pinned: an exact resume depends on it for as long as runs last."""

import warnings

import numpy as np
import pytest

from tests.messages import refuses
from trainer.data.order import sequence_at
from trainer.errors import DataError


@pytest.mark.parametrize(
    ("positions", "num_sequences", "seed", "expected"),
    [
        (range(12), 10, 1, [1, 0, 3, 5, 8, 9, 6, 7, 4, 2, 2, 0]),
        (
            range(999_999_995, 1_000_000_005),
            10**9,
            42,
            [105216547, 258353649, 527065744, 972218121, 537522450, 815865508, 201832002, 548628689, 240395490]
            + [457447205],
        ),
        (range(6), 1000, 2**64 - 1, [355, 350, 271, 789, 607, 941]),
        (range(3), 1, 7, [0, 0, 0]),
    ],
)
def test_the_order_is_the_pinned_one(positions, num_sequences, seed, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # integers that overflow by design must do so silently
        assert sequence_at(np.array(positions), num_sequences, seed).tolist() == expected


def test_no_positions_give_no_sequences():
    assert sequence_at(np.array([], dtype=np.int64), 10, 0).shape == (0,)


def test_an_order_of_nothing_is_refused():
    with refuses(DataError, "num_sequences", 0):
        sequence_at(np.arange(3), 0, 1)
    with pytest.raises(AssertionError):
        sequence_at(np.array([-1]), 10, 1)
