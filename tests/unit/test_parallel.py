"""How a model that each rank holds whole is parallel."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import TorchDynamoPlugin

from trainer.errors import ConfigError
from trainer.evaluation.samples import SAMPLES_READ
from trainer.metrics.probes import Probes
from trainer.parallel import Reads, Replicated, Sharded, parallel_of


def test_a_process_that_is_alone_holds_the_model_bare_and_clips_its_own_gradient():
    model = torch.nn.Linear(2, 1, bias=False)
    parallel = parallel_of(Accelerator(cpu=True))
    assert parallel.unwrap(model) is model
    with parallel.no_sync(model):
        model(torch.tensor([[3.0, 4.0]])).sum().backward()
    assert parallel.clip_grad_norm(model.parameters(), 1.0) == 5.0
    torch.testing.assert_close(model.weight.grad, torch.tensor([[0.6, 0.8]]))
    parallel.end(model)


@pytest.mark.parametrize("is_main", [True, False])
def test_what_reads_the_whole_model_runs_on_one_rank_that_holds_it(is_main):
    parallel = Replicated(SimpleNamespace(is_main_process=is_main))
    assert parallel.runs_here(Reads.OWN_PART)
    assert [parallel.runs_here(reads) for reads in (Probes.READS, SAMPLES_READ)] == [is_main, is_main]


@pytest.mark.parametrize("is_main", [True, False])
def test_every_rank_takes_part_in_what_reads_a_model_that_is_sharded(is_main):
    parallel = Sharded(SimpleNamespace(is_main_process=is_main))
    assert all(parallel.runs_here(reads) for reads in Reads)


def test_a_sharded_model_is_not_compiled_as_a_whole():
    state = SimpleNamespace(dynamo_plugin=TorchDynamoPlugin(backend="INDUCTOR", use_regional_compilation=False))
    with pytest.raises(ConfigError, match="dynamo_use_regional_compilation"):
        Sharded(SimpleNamespace(state=state)).prepare(torch.nn.Linear(1, 1), None)
