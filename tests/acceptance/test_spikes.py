"""A batch that would hurt the model is skipped, computed once more and told, and nothing else of the run changes by it."""

from functools import partial

import pytest

from tests.launching import TINY_GPT2, Started, final_bytes, steps, write_recipe
from trainer.journal import read_events

BAD = 12
"""The step whose batch is bad."""


def events(recipe, event):
    return read_events(recipe.parent / "runs" / "tiny", event)


def recipe_of(folder, **changes):
    folder.mkdir(exist_ok=True)
    spike = {"skip": True, "window": 16, "min_history": 8, "max_in_a_row": 3}
    changes = {"model": {"config": TINY_GPT2}, "safety": {"spike": spike}, **changes}
    return write_recipe(folder, **changes)


def bad_batches(factor, *, first_step=BAD, last_step=BAD, times=None, rank=0, repeats=True):
    """The batches of some steps have `factor` times the loss and the gradient, as often as they are computed or the first `times`, on one rank."""
    from trainer import loop
    from trainer.run.recheck import Recheck

    whole, seen = loop.accumulate_gradients, [0]

    def accumulate(run, batch):
        loss = whole(run, batch)
        is_bad = first_step <= batch.first_sequence // batch.num_sequences + 1 <= last_step
        if is_bad and rank in (None, run.accelerator.process_index) and (times is None or seen[0] < times):
            seen[0] += 1
            for parameter in run.model.parameters():
                parameter.grad.mul_(factor)
            loss *= factor
        return loss

    loop.accumulate_gradients = accumulate
    if not repeats:
        Recheck.repeat = lambda *arguments: False


def run(recipe, sabotage, num_processes=1):
    started = Started(recipe, (), num_processes, sabotage)
    assert started.wait() == 0, started.text()
    return final_bytes(recipe)


@pytest.mark.parametrize(("factor", "kind"), [(50.0, "spike"), (float("nan"), "not finite")])
def test_a_bad_batch_is_skipped_and_told_and_computing_it_again_changes_nothing(tmp_path, factor, kind):
    recipe = recipe_of(tmp_path / "again")
    weights = run(recipe, partial(bad_batches, factor))
    (bad,) = events(recipe, "bad_batch")
    assert (bad["step"], bad["kind"], bad["skipped"], bad["first_sequence"]) == (BAD, kind, True, (BAD - 1) * 8)
    assert len(bad["sequences"]) == 8
    assert [(event["step"], event["equal"], event["ranks"]) for event in events(recipe, "recompute")] == [
        (BAD, True, [])
    ]
    other = recipe_of(tmp_path / "not_again")
    assert run(other, partial(bad_batches, factor, repeats=False)) == weights
    assert [record["loss"] for record in steps(recipe)] == [record["loss"] for record in steps(other)]
    assert not events(other, "recompute")


def test_a_chip_that_computes_wrongly_once_is_told_by_its_rank(tmp_path):
    recipe = recipe_of(tmp_path)
    run(recipe, partial(bad_batches, 1000.0, times=1, rank=1), num_processes=2)
    assert [event["step"] for event in events(recipe, "bad_batch") if event["skipped"]] == [BAD]
    assert [(event["step"], event["equal"], event["ranks"]) for event in events(recipe, "recompute")] == [
        (BAD, False, [1])
    ]


def test_a_level_that_stays_is_taken_and_a_run_that_only_tells_takes_every_step(tmp_path):
    recipe = recipe_of(tmp_path / "level")
    run(recipe, partial(bad_batches, 50.0, last_step=99))
    assert [event["step"] for event in events(recipe, "bad_batch") if event["skipped"]] == [BAD, BAD + 1, BAD + 2]
    recipe = recipe_of(tmp_path / "told", safety={"spike": {"window": 16, "min_history": 8, "skip": False}})
    run(recipe, partial(bad_batches, 50.0))
    assert [(event["step"], event["skipped"]) for event in events(recipe, "bad_batch")] == [(BAD, False)]
    assert not events(recipe, "recompute")
