"""A run whose weights or losses are not numbers ends as diverged, exports nothing, and the next one begins before it went wrong."""

import math
from functools import partial

import pytest
import torch

from tests.launching import Started, checkpoint, outcome, steps, train, write_recipe
from tests.messages import says
from trainer.checkpoint.format.store import CheckpointStore
from trainer.checkpoint.resume.select import resolve
from trainer.journal import read_events

BLOWN_UP = ("optimizer.lr=1e30", "optimizer.max_grad_norm=1e30", "schedule.warmup_steps=0")


def events(recipe, kind):
    return [event for event in read_events(recipe.parent / "runs/tiny") if event["event"] == kind]


def exported(recipe):
    return (recipe.parent / "runs/tiny/exported").exists()


def test_a_run_that_blew_up_is_diverged_and_the_next_launch_begins_before_that(tmp_path):
    recipe = write_recipe(tmp_path, checkpoint={"every_steps": 1, "keep_last": 9}, evaluation={"every_steps": 99})
    train(recipe, *BLOWN_UP, "max_steps=8", exit_code=3)
    assert (outcome(recipe)["outcome"], outcome(recipe)["exit_code"], exported(recipe)) == ("diverged", 3, False)
    aside = [(event["step"], event["reason"]) for event in events(recipe, "set_aside")]
    assert aside
    assert all(reason == "diverged" for _, reason in aside)
    assert not list((tmp_path / "checkpoints/tiny").glob("step-*"))

    train(recipe, "max_steps=6")
    assert outcome(recipe)["outcome"] == "finished"
    assert exported(recipe)
    assert [record["step"] for record in steps(recipe)] == list(range(1, 7))

    said = train(recipe, *BLOWN_UP, "max_steps=40", exit_code=3)
    assert outcome(recipe)["outcome"] == "diverged"
    says(said, "10 steps", "not finite")
    assert [path.name for path in (tmp_path / "checkpoints/tiny").glob("step-*") if int(path.name[5:]) > 6] == []
    assert resolve(CheckpointStore(tmp_path / "checkpoints/tiny"), "latest").manifest.step == 6, (
        "every byte of it is as it was"
    )


def gradients_are_not_finite_from(step):
    """Every update from this step on is skipped."""
    from trainer import loop

    whole, seen = loop.accumulate_gradients, [0]

    def accumulate(run, batch):
        loss = whole(run, batch)
        seen[0] += 1
        if seen[0] >= step:
            next(run.bare_model.parameters()).grad.fill_(math.nan)
        return loss

    loop.accumulate_gradients = accumulate


def weights_are_not_finite_at_the_end():
    """The last update breaks one weight, which no gradient shows and no validation loss (it is of padding)."""
    from trainer import loop

    whole = loop.judge_end

    def judge_end(run, ending):
        with torch.no_grad():
            next(run.bare_model.parameters())[-1, -1] = math.inf
        return whole(run, ending)

    loop.judge_end = judge_end


def validation_is_not_finite():
    from trainer.evaluation.schedule import EvalSchedule

    record = EvalSchedule.record
    EvalSchedule.record = lambda self, step, loss: record(self, step, math.nan)


@pytest.mark.parametrize(
    ("sabotage", "expected", "code", "asynchronous"),
    [
        (partial(gradients_are_not_finite_from, 8), "finished", 0, "true"),
        (partial(gradients_are_not_finite_from, 6), "diverged", 3, "true"),
        (weights_are_not_finite_at_the_end, "diverged", 3, "true"),
        (weights_are_not_finite_at_the_end, "diverged", 3, "false"),
        (validation_is_not_finite, "diverged", 3, "true"),
    ],
    ids=["one-skip", "three-skips", "weights", "weights-waited-for", "validation"],
)
def test_a_run_that_ends_in_doubt_is_diverged_and_one_skipped_update_is_said(
    tmp_path, sabotage, expected, code, asynchronous
):
    recipe = write_recipe(tmp_path, checkpoint={"every_steps": 4, "keep_last": 9}, evaluation={"every_steps": 99})
    run = Started(recipe, ("max_steps=8", f"checkpoint.asynchronous={asynchronous}"), 1, sabotage)
    assert run.wait() == code, run.text()
    said = outcome(recipe)
    assert (said["outcome"], exported(recipe)) == (expected, expected == "finished")
    assert checkpoint(recipe, 4).is_dir()
    assert checkpoint(recipe, 8).is_dir() == (expected == "finished")
    tensors = [event["tensor"] for event in events(recipe, "not_saved")]
    assert tensors == (["model.embed_tokens.weight"] if sabotage is weights_are_not_finite_at_the_end else [])
    assert all(tensor in said["reason"] for tensor in tensors)
    if expected == "finished":
        assert "skipped" in said["reason"]
