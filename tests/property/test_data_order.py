"""What must hold of the order for any number of sequences, seed and epoch."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.order import sequence_at

NUM_SEQUENCES = st.one_of(st.integers(1, 70), st.integers(71, 3000))
SEEDS = st.integers(-(2**63), 2**64 - 1)
EPOCHS = st.integers(0, 10_000)


@given(NUM_SEQUENCES, SEEDS, EPOCHS)
@settings(deadline=None)
def test_each_epoch_holds_every_sequence_once(num_sequences, seed, epoch):
    positions = np.arange(num_sequences) + epoch * num_sequences
    assert np.array_equal(np.sort(sequence_at(positions, num_sequences, seed)), np.arange(num_sequences))


@given(st.integers(30, 3000), SEEDS, EPOCHS)
@settings(deadline=None)
def test_epochs_and_seeds_differ(num_sequences, seed, epoch):
    def order(epoch: int, seed: int) -> np.ndarray:
        return sequence_at(np.arange(num_sequences) + epoch * num_sequences, num_sequences, seed)

    here = order(epoch, seed)
    # Two unrelated orders agree in one place on average, and in more than eight about once in a million times.
    assert (here == order(epoch + 1, seed)).sum() <= 9
    assert (here == order(epoch, seed + 1)).sum() <= 9


@given(st.integers(1, 2**42), SEEDS, st.lists(st.integers(0, 2**50), min_size=1, max_size=50))
@settings(deadline=None)
def test_the_answer_at_a_position_does_not_depend_on_what_else_is_asked(num_sequences, seed, positions):
    together = sequence_at(np.array(positions), num_sequences, seed)
    alone = [int(sequence_at(np.array([position]), num_sequences, seed)[0]) for position in positions]
    assert together.tolist() == alone
    assert min(alone) >= 0
    assert max(alone) < num_sequences


def deviations(chi_square: float, freedom: int) -> float:
    """How far a chi-square statistic lies from its mean, in standard deviations."""
    return (chi_square - freedom) / np.sqrt(2 * freedom)


def test_every_sequence_comes_to_every_place_equally_often():
    for num_sequences in (2, 3, 10, 17, 64, 65):
        epochs, seeds = 100, 25
        seen = np.zeros((num_sequences, num_sequences))
        for seed in range(seeds):
            ids = sequence_at(np.arange(num_sequences * epochs), num_sequences, seed)
            np.add.at(seen, (np.tile(np.arange(num_sequences), epochs), ids), 1)
        expected = epochs * seeds / num_sequences
        # Each order fills every row and column once, which makes the cells vary more than independent counts would.
        chi_square = ((seen - expected) ** 2 / expected).sum() * (num_sequences - 1) / num_sequences
        assert abs(deviations(chi_square, (num_sequences - 1) ** 2)) < 4


def test_all_orders_of_a_handful_of_sequences_come_up_equally_often():
    for num_sequences, orders in ((3, 6), (4, 24), (5, 120)):
        draws = 12_000
        ids = sequence_at(np.arange(num_sequences * draws), num_sequences, 0).reshape(draws, num_sequences)
        _, counts = np.unique(ids, axis=0, return_counts=True)
        assert len(counts) == orders
        expected = draws / orders
        assert abs(deviations(((counts - expected) ** 2 / expected).sum(), orders - 1)) < 4


def test_neighbours_are_torn_apart_as_in_any_shuffle():
    num_sequences = 1_000_003
    ids = sequence_at(np.arange(20_000), num_sequences, 1)
    displacement = np.abs(ids - np.arange(20_000)).mean() / num_sequences
    step = np.abs(np.diff(ids)).mean() / num_sequences
    assert abs(displacement - 0.5) < 0.02  # the first places move by half the length on average
    assert abs(step - 1 / 3) < 0.02  # two uniform draws lie a third apart
    assert abs(np.corrcoef(ids[:-1], ids[1:])[0, 1]) < 0.03
