"""Which sequence stands at each position of the run: a seeded shuffle of every epoch that needs no memory and no state.

A position counts sequences over all ranks and epochs. Position // num_sequences is the epoch, and within it a Feistel
network permutes the smallest power of two that holds all sequences; what falls outside walks on along its cycle until
it is inside. So the sequence at any position is known at once, on every machine, without drawing those before it.
"""

from collections.abc import Iterable

import numpy as np

from trainer.errors import DataError

# Eight rounds with a full-avalanche mixer: four suffice in theory (Luby and Rackoff 1988), but only for wide halves.
_ROUNDS = 8
# The smallest domain permuted, in bits. Below, not all orders of a handful of sequences come up equally often (measured
# over the 120 orders of 5 sequences); walking through 64 entries for them costs milliseconds.
_MIN_BITS = 6
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 0xFFFFFFFFFFFFFFFF


def _mix(x: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64, [n] uint64 -> [n] uint64. Source: Steele, Lea and Flood 2014."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def sequence_at(positions: np.ndarray, num_sequences: int, seed: int) -> np.ndarray:
    """Which sequence stands at each position.

    positions      [n] int64, >= 0, counted over all ranks and epochs
    num_sequences  sequences in one epoch
    returns        [n] int64 in [0, num_sequences)
    raises         DataError when there are no sequences

    Pure, by integer arithmetic alone: the same on every machine and in every version (a golden test holds it).
    """
    if num_sequences < 1:
        raise DataError(f"num_sequences is {num_sequences}: an order needs at least one sequence. Prepare more tokens.")
    positions = np.atleast_1d(np.asarray(positions, dtype=np.int64))
    assert positions.size == 0 or positions.min() >= 0, "positions count from 0"
    epochs, within = np.divmod(positions, num_sequences)
    seed_key = _mix(np.array([(seed + _GOLDEN) & _MASK], dtype=np.uint64))
    keys = _mix(seed_key ^ _mix((epochs.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN)))
    bits = max(_MIN_BITS, (num_sequences - 1).bit_length())
    values = _feistel(within.astype(np.uint64), keys, bits)
    outside = np.flatnonzero(values >= num_sequences)
    while outside.size:
        values[outside] = _feistel(values[outside], keys[outside], bits)
        outside = outside[values[outside] >= num_sequences]
    return values.astype(np.int64)


def _feistel(values: np.ndarray, keys: np.ndarray, bits: int) -> np.ndarray:
    """A permutation of [0, 2**bits) for each key: values, keys [n] uint64 -> [n] uint64."""
    right_bits = bits // 2
    left_bits = bits - right_bits
    left, right = values >> np.uint64(right_bits), values & np.uint64((1 << right_bits) - 1)
    for i in range(_ROUNDS):
        # The halves change places each round, and with them their widths; after an even number they stand as before.
        width = np.uint64((1 << (left_bits if i % 2 == 0 else right_bits)) - 1)
        round_keys = keys + np.uint64(i * _GOLDEN & _MASK)
        left, right = right, left ^ (_mix(right + round_keys) & width)
    return (left << np.uint64(right_bits)) | right


def beyond(position: int, num_sequences: int, stretches: Iterable[tuple[int, int]]) -> int:
    """Where the batch begins that would begin at a position, if it must hold nothing of these stretches: there, or after them.

    stretches  (first position, the one after the last)
    """
    for begin, end in sorted(stretches):
        if position < end and position + num_sequences > begin:
            position = end
    return position
