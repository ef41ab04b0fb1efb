"""The preflight meets what a step needs before the first one, and a run with it is the run without it, to the last bit."""

from functools import partial

import pytest

from tests.launching import TINY_GPT2, Started, final_bytes, write_recipe
from trainer.journal import read_events


def recipe_of(folder, **changes):
    folder.mkdir(exist_ok=True)
    return write_recipe(folder, model={"config": TINY_GPT2}, max_steps=8, evaluation={"every_steps": 4}, **changes)


def preflights(recipe):
    return read_events(recipe.parent / "runs" / "tiny", "preflight")


def run(recipe, *words, num_processes=1, sabotage=None, exit_code=0):
    started = Started(recipe, words, num_processes, sabotage)
    assert started.wait() == exit_code, started.text()
    return started.text()


def same_weights(tmp_path, optimizer, num_processes=1):
    with_it, without = (recipe_of(tmp_path / name, optimizer={"name": optimizer}) for name in ("with", "without"))
    run(with_it, "preflight=true", num_processes=num_processes)
    run(without, "preflight=false", num_processes=num_processes)
    assert final_bytes(with_it, 8) == final_bytes(without, 8)
    assert not preflights(without)
    (event,) = preflights(with_it)
    assert event["step"] is None
    assert event["evaluation"] is True
    return event


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_with_the_preflight_is_the_run_without_it(tmp_path, optimizer):
    assert same_weights(tmp_path, optimizer)["bytes_per_second"] is None


@pytest.mark.long
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_so_are_two_ranks_which_compare_what_they_compute(tmp_path, optimizer):
    event = same_weights(tmp_path, optimizer, num_processes=2)
    assert event["bytes_per_second"] > 0
    assert event["not_compared"] == []


@pytest.mark.long
def test_a_start_under_the_same_conditions_does_without(tmp_path):
    recipe = recipe_of(tmp_path)
    run(recipe, "max_steps=4", "schedule.warmup_steps=2")
    run(recipe, "max_steps=4", "schedule.warmup_steps=2")
    assert len(preflights(recipe)) == 1
    run(recipe, "max_steps=8")
    assert len(preflights(recipe)) == 2


def one_rank_computes_otherwise():
    from trainer.run import health

    whole = health.chain_digest
    health.chain_digest = lambda run: whole(run) + str(run.accelerator.process_index)


def no_memory_for_moments():
    import torch

    def step(self, *given, **named):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    torch.optim.AdamW.step = step


@pytest.mark.long
def test_ranks_that_compute_otherwise_are_refused_before_the_first_step(tmp_path):
    said = run(recipe_of(tmp_path), num_processes=2, sabotage=one_rank_computes_otherwise, exit_code=2)
    assert "rank 0, 1 computed other bits" in said.replace("\n", " ")


@pytest.mark.long
def test_memory_that_is_too_small_is_the_same_paragraph_before_the_first_step(tmp_path):
    recipe = recipe_of(tmp_path)
    run(recipe, sabotage=partial(no_memory_for_moments), exit_code=2)
    assert not preflights(recipe)
    (stop,) = read_events(recipe.parent / "runs" / "tiny", "stop")
    assert stop["cause"] == "out_of_memory"
    assert not stop.get("step")
