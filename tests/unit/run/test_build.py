"""What the parts of a run are told of its settings."""

import json
import os
from types import SimpleNamespace

import pytest
import torch

from tests import launching
from tests.launching import ONE_THREAD, write_recipe
from trainer.model import head
from trainer.model.fused import log_likelihoods
from trainer.model.head_way import HeadWay
from trainer.run import build, prepared
from trainer.run.reporting import is_profiled


@pytest.mark.parametrize(("steps", "profiled"), [(None, []), ((2, 4), [2, 3, 4])])
def test_steps_under_the_profiler_are_another_kind_to_the_watch_for_slow_steps(steps, profiled):
    config = SimpleNamespace(profile=SimpleNamespace(steps=steps))
    assert [step for step in range(1, 7) if is_profiled(config, step)] == profiled


def train_once(recipe, path):
    """In a process of its own: one pass through the model of a run whose blocks are compiled.

    Writes how often its head took one kernel, and whether the memory holds what.
    """
    from trainer.config.load import load
    from trainer.safety.requests import Requests

    regions = {"ACCELERATE_DYNAMO_BACKEND": "EAGER", "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "true"}
    os.environ.update(ONE_THREAD, ACCELERATE_USE_CPU="true", **regions)
    calls, asked = [], []
    prepared.check_memory = lambda model, device, *facts: asked.append((facts[0].micro_batch, *facts[1:]))
    head.compiled_log_likelihoods = lambda: lambda *operands: calls.append(1) or log_likelihoods(*operands)
    prepared.find_head_way = lambda model, num_tokens, **_: HeadWay(True, torch.float32, num_tokens)
    run = build.build_run(load(recipe).config, Requests())
    assert not calls and run.model is not run.bare_model, "what is trained is a copy"
    tokens = torch.zeros((run.config.micro_batch, run.config.sequence_length), dtype=torch.int64)
    run.model(tokens, labels=tokens)
    path.write_text(json.dumps([len(calls), asked]))
    os._exit(0)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(how often the head took one kernel, what was asked of the memory) of a run that was built."""
    folder = tmp_path_factory.mktemp("built")
    process = launching.server_context().Process(target=train_once, args=(str(write_recipe(folder)), folder / "calls"))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    return json.loads((folder / "calls").read_text())


def test_the_way_of_the_head_reaches_the_model_that_is_trained_and_not_only_the_one_it_was_made_of(built):
    assert built[0] == 1


def test_whether_the_memory_holds_a_run_is_asked_once_with_what_the_run_takes(built):
    assert built[1] == [[2, "no", 1, 1]]
