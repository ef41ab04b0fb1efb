import math

import pytest
import torch

from trainer.run import consensus as consensus_module
from trainer.run.consensus import Consensus
from trainer.safety.spikes import Judged
from trainer.step_result import SaveRequest, StepResult, Verdict

NONE = SaveRequest.NONE


class Ranks:
    """An accelerator of several ranks, of which each has the same numbers."""

    device = torch.device("cpu")

    def __init__(self, num_processes=1):
        self.num_processes = num_processes

    def reduce(self, numbers, reduction):
        assert reduction == "sum"
        return numbers * self.num_processes


class Late:
    """A copy from a device that arrives later."""

    is_asynchronous = True

    def __init__(self, numbers):
        self._numbers = numbers

    def read(self):
        return self._numbers


def consensus_of(accelerator, max_steps=9, is_followed=lambda step: False):
    return Consensus(accelerator, max_steps=max_steps, is_followed=is_followed)


def submit(consensus, step, *, loss=2.5, grad_norm=1.5, vote=0.0, request=NONE, save_vote=0.0, aux_loss=None):
    aux_loss = None if aux_loss is None else torch.tensor(aux_loss)
    agreed = consensus.agree(
        torch.tensor(loss), stop_vote=vote, save_request=request, save_vote=save_vote, aux_loss=aux_loss
    )
    norm = torch.tensor(grad_norm)
    consensus.submit(step, agreed, norm, Judged(torch.tensor(3.5), torch.tensor(1), norm))


@pytest.fixture
def on_a_gpu(monkeypatch):
    monkeypatch.setattr(consensus_module, "AsyncHostCopy", Late)


def test_on_a_cpu_a_result_is_there_at_once():
    consensus = consensus_of(Ranks())
    assert consensus.latest is None
    submit(consensus, 1, vote=1.0, request=SaveRequest.WRITE)
    assert consensus.collect() == [StepResult(1, 2.5, 1.5, 1, SaveRequest.WRITE, verdict=Verdict.SPIKE, score=3.5)]
    assert consensus.newest() == consensus.latest
    assert consensus.latest.step == 1
    assert consensus.settle() == []


def test_the_loss_is_the_mean_over_the_ranks_votes_are_counted_and_the_gradient_norm_is_that_of_each():
    consensus = consensus_of(Ranks(4))
    submit(consensus, 1, vote=1.0)
    (result,) = consensus.collect()
    assert (result.loss, result.grad_norm, result.stop_votes) == (2.5, 1.5, 4)
    assert consensus.votes_to_stop(1.0) == 4.0


@pytest.mark.parametrize("request_", list(SaveRequest))
@pytest.mark.parametrize("votes", [0, 1, 3, 64])
def test_every_rank_may_ask_for_a_save_beside_what_the_first_requests(request_, votes):
    class Unlike(Ranks):
        def reduce(self, numbers, reduction):
            others = torch.zeros_like(numbers)
            others[1] = (votes - 1) * len(SaveRequest)  # each has a vote, and no request
            return numbers + others

    consensus = consensus_of(Unlike() if votes else Ranks())
    submit(consensus, 1, loss=0.0, request=request_, save_vote=float(votes > 0))
    (result,) = consensus.collect()
    assert (result.save_request, result.save_votes) == (request_, votes)
    assert result.needs_answer == bool(request_ or votes)


def test_the_auxiliary_loss_is_the_mean_over_the_ranks_where_there_is_one():
    consensus = consensus_of(Ranks(4))
    submit(consensus, 1, aux_loss=2.25)
    (result,) = consensus.collect()
    assert (result.aux_loss, result.loss, result.grad_norm) == (2.25, 2.5, 1.5)
    submit(consensus, 2)
    (result,) = consensus.collect()
    assert result.aux_loss is None


def test_what_is_not_finite_arrives_as_it_is():
    consensus = consensus_of(Ranks())
    submit(consensus, 1, loss=math.nan, grad_norm=math.inf)
    (result,) = consensus.collect()
    assert math.isnan(result.loss)
    assert math.isinf(result.grad_norm)


def test_on_a_gpu_a_result_comes_with_the_next_step_and_the_last_is_waited_for(on_a_gpu):
    consensus = consensus_of(Ranks(), max_steps=3)
    collected = []
    for step in (1, 2, 3):
        submit(consensus, step)
        collected.append([result.step for result in consensus.collect()])
    assert collected == [[], [1], [2, 3]]


def test_on_a_gpu_the_result_is_waited_for_where_work_follows_the_step(on_a_gpu):
    consensus = consensus_of(Ranks(), is_followed=lambda step: step == 2)
    collected = []
    for step in (1, 2, 3):
        submit(consensus, step)
        collected.append([result.step for result in consensus.collect()])
    assert collected == [[], [1, 2], []]
    assert [result.step for result in consensus.settle()] == [3]
    assert consensus.latest.step == 3


@pytest.mark.parametrize("asks", [{"vote": 1.0}, {"request": SaveRequest.SNAPSHOT}])
def test_on_a_gpu_all_is_known_before_a_request_is_answered(on_a_gpu, asks):
    consensus = consensus_of(Ranks())
    submit(consensus, 1, **asks)
    assert consensus.collect() == []
    submit(consensus, 2)
    assert [result.step for result in consensus.collect()] == [1, 2]


@pytest.mark.parametrize(
    ("step", "result", "is_needed"),
    [
        (4, StepResult(3, 2.5, 1.5, 0, NONE), False),
        (4, StepResult(3, 2.5, 1.5, 2, NONE), True),
        (4, StepResult(3, 2.5, 1.5, 0, SaveRequest.WRITE), True),
        (5, StepResult(4, 2.5, 1.5, 0, NONE), True),
        (9, StepResult(8, 2.5, 1.5, 0, NONE), True),
    ],
)
def test_everything_must_be_known_before_the_end_work_that_follows_and_an_answer(step, result, is_needed):
    consensus = consensus_of(Ranks(), is_followed=lambda step: step == 5)
    assert consensus.must_settle(step, [result]) is is_needed


def test_of_several_requests_the_highest_counts():
    assert max(SaveRequest.SNAPSHOT, SaveRequest.GIVE_UP, SaveRequest.WRITE) is SaveRequest.GIVE_UP
    assert not SaveRequest.NONE
