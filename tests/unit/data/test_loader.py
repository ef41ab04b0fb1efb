"""A batch is a function of its position: the same for every world size, after every resume, without side effects."""

import random
import threading

import numpy as np
import pytest
import torch

from tests.messages import refuses
from trainer.config.batch import accumulation_steps
from trainer.data.loader import TokenLoader, validation_batches
from trainer.data.order import sequence_at
from trainer.errors import ConfigError, DataError


@pytest.fixture
def make_loader(make_dataset):
    dataset = make_dataset(200, 300)

    def make(rank: int = 0, world_size: int = 1, micro_batch: int = 2, global_batch: int = 12, seed: int = 5):
        return TokenLoader(
            dataset,
            global_batch=global_batch,
            micro_batch=micro_batch,
            rank=rank,
            world_size=world_size,
            seed=seed,
            device=torch.device("cpu"),
        )

    return make


def take(loader: TokenLoader, number: int, first_sequence: int = 0) -> list:
    batches = loader.batches(first_sequence)
    taken = [next(batches) for _ in range(number)]
    batches.close()
    return taken


def rows(batch) -> list[list[int]]:
    return [row for micro_batch in batch.micro_batches for row in micro_batch.inputs.tolist()]


def test_labels_are_the_inputs_one_token_on(make_loader):
    (batch,) = take(make_loader(), 1)
    assert len(batch.micro_batches) == 6
    for micro_batch in batch.micro_batches:
        assert micro_batch.inputs.shape == micro_batch.labels.shape == (2, 8)
        assert micro_batch.inputs.dtype == micro_batch.labels.dtype == torch.int64
        assert micro_batch.inputs.is_contiguous()
        assert micro_batch.labels.is_contiguous()
        assert torch.equal(micro_batch.labels, micro_batch.inputs + 1)  # tokens of the test data are running numbers


def test_a_batch_says_what_the_global_batch_amounts_to(make_loader):
    first, second = take(make_loader(rank=1, world_size=2), 2, first_sequence=24)
    assert (first.first_sequence, second.first_sequence) == (24, 36)
    assert (first.num_sequences, first.num_tokens) == (12, 96)
    assert first.digest != second.digest
    assert len(first.digest) == 16
    assert make_loader().epoch_at(31) == pytest.approx(31 / 61)


def test_the_batch_holds_the_sequences_of_its_positions(make_loader):
    loader = make_loader()
    (batch,) = take(loader, 1, first_sequence=55)  # runs over the end of the first epoch of 61
    ids = sequence_at(np.arange(55, 67), 61, 5)
    assert rows(batch) == loader.dataset.sequences(ids)[:, :-1].tolist()
    assert batch.digest == "41f8418ca8f90982"


def test_ranks_share_a_global_batch_out_without_overlap(make_loader):
    (whole,) = take(make_loader(), 1)
    parts = [take(make_loader(rank=rank, world_size=3), 1)[0] for rank in range(3)]
    assert sorted(row for part in parts for row in rows(part)) == sorted(rows(whole))
    assert {part.digest for part in parts} == {whole.digest}


def test_resuming_gives_the_batches_that_running_on_would_have_given(make_loader):
    run_on = take(make_loader(), 9)
    resumed = take(make_loader(), 3, first_sequence=72)
    assert [(b.first_sequence, b.digest, rows(b)) for b in run_on[6:]] == [
        (b.first_sequence, b.digest, rows(b)) for b in resumed
    ]


def test_another_seed_is_another_order(make_loader):
    assert take(make_loader(seed=1), 1)[0].digest != take(make_loader(seed=2), 1)[0].digest


def test_no_global_random_stream_is_touched(make_loader):
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    take(make_loader(), 3)
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "read-ahead"]


def test_one_batch_is_read_ahead_and_the_thread_ends_with_the_generator(make_loader, monkeypatch):
    loader = make_loader()
    read, asked = loader._read, []
    monkeypatch.setattr(loader, "_read", lambda position: asked.append(position) or read(position))
    batches = loader.batches(0)
    assert readers() == []
    next(batches)
    (thread,) = readers()
    assert thread.daemon
    next(batches)
    batches.close()
    assert asked == [0, 12, 24]
    assert readers() == []


def test_an_abandoned_generator_ends_its_thread_too(make_loader):
    for _ in make_loader().batches(0):
        break
    assert readers() == []


def test_an_error_in_the_thread_is_raised_where_the_batch_is_asked_for(make_loader):
    loader = make_loader()
    loader.dataset.vocab_size = 300
    with refuses(DataError, "vocabulary of 300"):
        take(loader, 20)
    assert readers() == []


def test_sizes_that_fit_give_the_number_of_micro_batches():
    assert accumulation_steps(480, 16, 6) == 5


def test_sizes_that_do_not_fit_are_answered_with_those_that_do(make_loader):
    with refuses(ConfigError, "global_batch", 480, "micro_batch", "16 x 7 = 112", "448, 560") as raised:
        accumulation_steps(480, 16, 7)
    assert "set" not in str(raised.value)  # 480 sequences cannot be shared out over 7 processes: no micro_batch fits
    with refuses(ConfigError, "448, 512", "micro_batch", 15):
        accumulation_steps(480, 16, 4)
    with refuses(ConfigError, "nearest: 8", "micro_batch", 3):
        make_loader(global_batch=3, micro_batch=8)


@pytest.mark.parametrize(
    ("sizes", "name"), [((0, 1, 1), "global_batch"), ((1, 0, 1), "micro_batch"), ((1, 1, 0), "processes")]
)
def test_sizes_below_one_are_refused(sizes, name):
    with refuses(ConfigError, name, 0):
        accumulation_steps(*sizes)


@pytest.mark.parametrize(("world_size", "micro_batch"), [(1, 1), (1, 4), (2, 3), (3, 8), (5, 7)])
@pytest.mark.parametrize("num_sequences", [None, 1, 10, 1000])
def test_validation_is_the_same_set_for_every_world_size_and_micro_batch(
    make_dataset, world_size, micro_batch, num_sequences
):
    dataset = make_dataset(200, 300)
    expected = dataset.sequences(np.arange(min(num_sequences or 61, 61)))
    per_rank = [
        list(
            validation_batches(
                dataset,
                num_sequences=num_sequences,
                micro_batch=micro_batch,
                rank=rank,
                world_size=world_size,
                device="cpu",
            )
        )
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in per_rank}) == 1
    seen = []
    for batch in (batch for batches in per_rank for batch in batches):
        assert batch.inputs.shape == batch.labels.shape == (micro_batch, 8)
        for inputs, labels in zip(batch.inputs.tolist(), batch.labels.tolist()):
            if labels[0] == -100:
                assert set(labels) == {-100}
                assert set(inputs) == {0}
            else:
                seen.append(inputs + labels[-1:])
    assert sorted(seen) == expected.tolist()
