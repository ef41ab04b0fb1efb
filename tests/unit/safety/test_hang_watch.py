"""Which histories of signs of life and processor time are a hang, and whose."""

import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer import beats
from trainer.beats import TRAINING, Beat, Board
from trainer.config.unattended import HangConfig
from trainer.evaluation.loss import validation_loss
from trainer.safety.hang_watch import HangWatch, processor_seconds

SETTINGS = HangConfig(min_seconds=10.0, first_seconds=100.0, max_seconds=300.0)


class Ranks:
    """Two ranks under a clock that the test turns."""

    def __init__(self, num_ranks=2, *, on_gpu=False):
        self.now, self.on_gpu = 1000.0, on_gpu
        self.numbers, self.steps = [0] * num_ranks, [0] * num_ranks
        self.phases, self.said = [TRAINING] * num_ranks, [1000.0] * num_ranks
        self.busy = [0.0] * num_ranks
        self.watch = HangWatch(SETTINGS, self.read, num_ranks, lambda pid: self.busy[pid])

    def read(self):
        return {
            rank: Beat(number, rank, self.steps[rank], self.said[rank], self.on_gpu, self.phases[rank])
            for rank, number in enumerate(self.numbers)
            if number
        }

    def say(self, rank, phase=TRAINING, steps=0):
        self.numbers[rank] += 1
        self.steps[rank] += steps
        self.phases[rank], self.said[rank] = phase, self.now

    def run(self, seconds, *, step_seconds=None, busy=()):
        """Looks every second; every `step_seconds` all ranks finish a step, and the ranks of `busy` compute."""
        for _ in range(int(seconds)):
            self.now += 1
            for rank in busy:
                self.busy[rank] += 0.9
            if step_seconds and self.now % step_seconds == 0:
                for rank in range(len(self.numbers)):
                    self.say(rank, steps=1)
            if hang := self.watch.look(self.now):
                return hang
        return None


def trained(**changes):
    ranks = Ranks(**changes)
    for rank in (0, 1):
        ranks.say(rank)
    assert ranks.run(130, step_seconds=2, busy=(0, 1)) is None
    return ranks


def test_a_rank_that_does_not_compute_while_the_other_waits_for_it_is_a_hang():
    ranks = trained()
    hang = ranks.run(60, busy=(0,))
    assert hang.ranks == (1,)
    assert 20.0 < hang.seconds <= 23.0 and hang.limit_seconds == pytest.approx(20.0)
    assert (hang.beats[1].step, hang.beats[1].phase) == (65, TRAINING)


def test_where_both_wait_without_a_sound_the_one_behind_is_named_and_both_where_none_is():
    ranks = trained()
    ranks.say(0, steps=1)
    assert ranks.run(60).ranks == (1,)
    assert trained().run(60).ranks == (0, 1)


def test_a_step_that_is_merely_slow_is_left_alone_and_one_that_computes_for_ever_is_not():
    ranks = trained()
    assert ranks.run(100, step_seconds=10, busy=(0, 1)) is None
    assert ranks.run(280, busy=(0, 1)) is None
    assert ranks.run(60, busy=(0, 1)).ranks == (0, 1)


def test_before_the_steps_are_known_the_first_limit_holds():
    ranks = Ranks()
    for rank in (0, 1):
        ranks.say(rank)
    assert ranks.run(99) is None
    assert ranks.run(10) is not None


@pytest.mark.parametrize(("phase", "limit"), [("evaluating", 1800), ("sampling", 100), ("starting", 3600)])
def test_what_is_no_step_has_a_limit_of_its_own(phase, limit):
    ranks = trained()
    for rank in (0, 1):
        ranks.say(rank, phase=phase)
    assert ranks.run(limit - 5) is None
    assert ranks.run(20) is not None


def test_a_rank_that_is_not_overdue_by_what_it_does_keeps_the_others_waiting():
    ranks = trained()
    ranks.say(0, phase="evaluating")
    assert ranks.run(1700) is None


def test_a_rank_that_says_nothing_hangs_where_it_is_imported():
    ranks = Ranks()
    ranks.say(0)
    assert ranks.run(3590) is None
    assert ranks.run(20).ranks == (1,)


def test_a_step_is_measured_whole_though_it_speaks_at_each_micro_batch():
    ranks = Ranks(on_gpu=True)
    for _ in range(60):
        for micro_batch in range(10):
            for rank in (0, 1):
                ranks.say(rank, steps=int(micro_batch == 9))
            assert ranks.run(3) is None
    assert ranks.watch.limit_seconds(0) == pytest.approx(300.0)
    ranks.watch._settings = HangConfig(min_seconds=1.0, first_seconds=1.0, max_seconds=1.0)
    assert ranks.run(290) is None and ranks.run(20).ranks == (0, 1)


def test_a_step_in_which_the_machine_slept_is_not_learnt_from():
    ranks = trained()
    ranks.now += 3000
    assert ranks.run(4, step_seconds=2, busy=(0, 1)) is None
    assert ranks.watch.limit_seconds(0) == pytest.approx(20.0)


def test_a_machine_that_slept_is_no_hang():
    ranks = trained()
    ranks.now += 5000
    assert ranks.watch.look(ranks.now) is None
    assert ranks.run(15, busy=(0, 1)) is None
    assert ranks.run(30) is not None, "and it is watched again"


def test_a_rank_on_a_gpu_spins_in_any_case_so_its_silence_counts():
    assert trained(on_gpu=True).run(60, busy=(0, 1)).ranks == (0, 1)


@given(st.lists(st.tuples(st.integers(1, 8), st.booleans(), st.booleans()), max_size=30))
def test_as_long_as_every_rank_speaks_within_its_limit_nothing_is_a_hang(pauses):
    ranks = trained()
    for seconds, first, second in pauses:
        for rank in (0, 1):
            ranks.say(rank, steps=1)
        busy = [rank for rank, is_busy in ((0, first), (1, second)) if is_busy]
        assert ranks.run(seconds, busy=busy) is None


def test_signs_of_life_go_through_memory_that_the_launch_reads(monkeypatch):
    with Board(2) as board:
        assert board.read() == {}
        monkeypatch.setattr(beats, "_rank", None)
        monkeypatch.setenv(beats.BEATS, board.environment[beats.BEATS])
        monkeypatch.setenv("LOCAL_RANK", "1")
        beats.beat(7, TRAINING)
        with beats.phase("evaluating"):
            (said,) = board.read().values()
            assert (said.step, said.phase, said.pid, said.on_gpu) == (7, "evaluating", os.getpid(), False)
        after = board.read()[1]
        assert (after.phase, after.number) == (TRAINING, 3)
    assert not board.path.exists()
    monkeypatch.setattr(beats, "_rank", None)
    beats.beat(8)  # the launch is gone: nothing is written, and nothing is wrong
    monkeypatch.setattr(beats, "_rank", None)


def test_the_processor_time_of_a_process_counts_those_below_it():
    assert processor_seconds(os.getpid()) > 0
    assert processor_seconds(2**22 + 1) is None


def test_each_batch_of_an_evaluation_is_a_sign_of_life(monkeypatch):
    """A long one has a limit of its own, which on a GPU would end it however well it goes on."""
    said = []
    monkeypatch.setattr("trainer.evaluation.loss.beats.beat", lambda: said.append("beat"))
    model = torch.nn.Linear(1, 1)
    monkeypatch.setattr(model, "forward", lambda inputs, labels, reduction: torch.tensor([1.0, 2.0]))
    batch = torch.zeros(1, 2)
    validation_loss(model, [(batch, batch)] * 3, lambda totals: totals)
    assert said == ["beat"] * 3
