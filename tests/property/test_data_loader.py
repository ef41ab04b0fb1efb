"""What must hold of batches for any sizes that fit together, and any place to resume at."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.config.batch import accumulation_steps
from trainer.data.loader import Batch, TokenLoader
from trainer.data.shards import ShardWriter, TokenDataset
from trainer.errors import ConfigError


@cache
def dataset() -> TokenDataset:
    """53 sequences of length 4 in two shards, all tokens different; the maps outlive their files."""
    with TemporaryDirectory() as folder:
        paths = [Path(folder) / "a.bin", Path(folder) / "b.bin"]
        for path, (first, last) in zip(paths, [(0, 121), (121, 215)]):
            with ShardWriter(path, 1000) as shard:
                shard.write(np.arange(first, last))
        opened = TokenDataset(paths, 4, 1000)
        opened.sequences(np.arange(opened.num_sequences))
        return opened


def batches(
    sizes: tuple[int, int, int], number: int, *, seed: int, first_sequence: int = 0, ranks: int | None = None
) -> list[list[Batch]]:
    """The first batches of every rank, [rank][step], for (A, B, W)."""
    accumulation, micro_batch, world_size = sizes
    result = []
    for rank in range(world_size if ranks is None else ranks):
        loader = TokenLoader(
            dataset(),
            global_batch=accumulation * micro_batch * world_size,
            micro_batch=micro_batch,
            rank=rank,
            world_size=world_size,
            seed=seed,
            device=torch.device("cpu"),
        )
        stream = loader.batches(first_sequence)
        result.append([next(stream) for _ in range(number)])
        stream.close()
    return result


def rows(batch: Batch) -> list[list[int]]:
    return [row for micro_batch in batch.micro_batches for row in micro_batch.inputs.tolist()]


@st.composite
def divisions(draw: st.DrawFn) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Two ways (A, B, W) to share out one global batch."""
    global_batch = draw(st.sampled_from([1, 2, 6, 8, 12, 24, 30, 60]))

    def division() -> tuple[int, int, int]:
        world_size = draw(st.sampled_from([w for w in range(1, 7) if global_batch % w == 0]))
        share = global_batch // world_size
        micro_batch = draw(st.sampled_from([b for b in range(1, share + 1) if share % b == 0]))
        return share // micro_batch, micro_batch, world_size

    return division(), division()


@given(divisions(), st.integers(0, 500), st.integers(0, 2**32))
@settings(deadline=None, max_examples=40)
def test_a_step_holds_the_same_sequences_however_it_is_shared_out(two, first_sequence, seed):
    steps = []
    for sizes in two:
        per_rank = batches(sizes, 2, seed=seed, first_sequence=first_sequence)
        for step in range(2):
            assert len({(ranked[step].digest, ranked[step].first_sequence) for ranked in per_rank}) == 1
        steps.append(
            [
                (per_rank[0][step].digest, sorted(row for ranked in per_rank for row in rows(ranked[step])))
                for step in range(2)
            ]
        )
    assert steps[0] == steps[1]


@given(divisions(), st.integers(0, 6), st.integers(0, 2**32))
@settings(deadline=None, max_examples=25)
def test_resuming_at_a_position_gives_the_batch_that_running_to_it_gives(two, step, seed):
    accumulation, micro_batch, world_size = sizes = two[0]
    position = step * accumulation * micro_batch * world_size
    (running,) = batches(sizes, step + 1, seed=seed, ranks=1)
    (resumed,) = batches(sizes, 1, seed=seed, first_sequence=position, ranks=1)
    assert running[-1].first_sequence == position
    assert (rows(running[-1]), running[-1].digest) == (rows(resumed[0]), resumed[0].digest)


@given(st.integers(1, 5000), st.integers(1, 64), st.integers(1, 64))
def test_what_is_suggested_for_sizes_that_do_not_fit_does_fit(global_batch, micro_batch, world_size):
    try:
        accumulation = accumulation_steps(global_batch, micro_batch, world_size)
        assert accumulation * micro_batch * world_size == global_batch
    except ConfigError as error:
        message = str(error)
        nearest, _, other = message.partition("nearest: ")[2].partition(".")
        assert all(accumulation_steps(int(size), micro_batch, world_size) for size in nearest.split(", "))
        if "set micro_batch to" in other:
            assert accumulation_steps(global_batch, int(other.split()[-1].rstrip(".")), world_size)
        else:
            assert global_batch % world_size
