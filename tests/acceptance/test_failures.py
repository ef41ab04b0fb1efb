"""Two ranks, one of which fails: a person reads once what happened, and outcome.json says the same."""

import functools
import os

import pytest

from tests.commands import paragraph
from tests.launching import Started, outcome, steps, train, wait_for_step, write_recipe
from tests.messages import says
from trainer.errors import DataError

LOST_SHARD = DataError("the shard x.bin holds the token id 60,000, outside the vocabulary of 257 ids.")
BUG = ZeroDivisionError("a bug of ours")


def raises_at_step(step, rank, error):
    """In this rank, the batch of this step cannot be read."""
    from trainer.data.loader import TokenLoader

    whole = TokenLoader.batches

    def batches(self, sequences):
        for number, batch in enumerate(whole(self, sequences), start=1):
            if number == step and os.environ["RANK"] == str(rank):
                raise error
            yield batch

    TokenLoader.batches = batches


def run_two(tmp_path, rank, error):
    """A run of two ranks whose sixth step fails in one of them; how it ended, and what both of them said."""
    recipe = write_recipe(tmp_path)
    run = Started(recipe, (), 2, functools.partial(raises_at_step, 6, rank, error))
    run.wait()
    assert [process.exitcode for process in run.ranks] == [1, 1], run.text()
    return outcome(recipe), run.text()


@pytest.mark.parametrize(("rank", "reason"), [(0, str(LOST_SHARD)), (1, f"rank 1: {LOST_SHARD}")])
def test_a_mistake_that_one_rank_finds_is_said_once_and_is_the_reason(tmp_path, rank, reason):
    ended, said = run_two(tmp_path, rank, LOST_SHARD)
    assert paragraph(said) == f"error: {LOST_SHARD}"
    assert (ended["outcome"], ended["step"], ended["reason"]) == ("failed", 5, reason)


@pytest.mark.parametrize(
    ("rank", "reason"), [(0, "ZeroDivisionError: a bug of ours"), (1, "rank 1: ZeroDivisionError: a bug of ours")]
)
def test_a_bug_shows_its_traceback_from_the_rank_where_it_is_and_no_other(tmp_path, rank, reason):
    ended, said = run_two(tmp_path, rank, BUG)
    assert said.count("Traceback") == 1
    assert said.rstrip().endswith("ZeroDivisionError: a bug of ours")
    assert "error:" not in said
    assert "gloo" not in said
    assert (ended["outcome"], ended["reason"]) == ("failed", reason)


@pytest.mark.parametrize("killed", [pytest.param(0, marks=pytest.mark.long), 1])
def test_a_rank_that_is_killed_is_told_by_the_other_in_one_paragraph(tmp_path, killed):
    recipe = write_recipe(tmp_path, max_steps=2000, checkpoint={"every_steps": 5, "keep_best": 0})
    run = Started(recipe, (), 2)
    wait_for_step(recipe, 6, run)
    run.ranks[killed].kill()
    run.wait()
    told = paragraph(run.text())
    says(told, "connection", "out of memory")
    assert run.ranks[1 - killed].exitcode == 1
    assert outcome(recipe)["outcome"] == ("failed" if killed == 1 else "running")

    last = steps(recipe)[-1]["step"]
    train(recipe, f"max_steps={last + 3}", num_processes=2)
    assert not list((tmp_path / "runs/tiny").glob(".failed-rank-*"))
