"""The number of processes may change between two launches: the data is the same, the loss equal up to the order of summation."""

import pytest

from tests.launching import TINY_LLAMA, steps, train, write_recipe
from tests.messages import says


def _one_two_one(folder, **changes):
    """A run that goes on with two processes after a third of its steps, and with one again for the last third."""
    recipe = write_recipe(folder, **changes)
    for last, num_processes in ((8, 1), (16, 2), (24, 1)):
        _run_until(recipe, last, num_processes)
    return steps(recipe)


def _run_until(recipe, last, num_processes):
    """All of the run up to a step: a checkpoint stands there, as if the machine had been taken away after it."""
    if last == 24:
        train(recipe, num_processes=num_processes)
        return
    from tests.launching import start, wait_for_step

    run = start(recipe, num_processes=num_processes)
    wait_for_step(recipe, last + 1, run)
    run.kill()


@pytest.mark.parametrize(
    ("optimizer", "tolerance"), [("adamw", 1e-4), ("muon", 1e-2)], ids=["adamw-within-1e-4", "muon-within-1-percent"]
)
def test_one_two_one_processes_see_the_sequences_of_the_straight_run(tmp_path, optimizer, tolerance):
    settings = {"optimizer": {"name": optimizer}, "checkpoint": {"every_steps": 8}, "model": {"config": TINY_LLAMA}}
    for name in ("straight", "elastic"):
        (tmp_path / name).mkdir()
    straight_recipe = write_recipe(tmp_path / "straight", **settings)
    train(straight_recipe)
    straight = steps(straight_recipe)
    elastic = _one_two_one(tmp_path / "elastic", **settings)

    assert [record["data_digest"] for record in elastic] == [record["data_digest"] for record in straight]
    assert len({record["data_digest"] for record in straight}) == 24, "the digest should tell steps apart"
    assert [record["tokens"] for record in elastic] == [record["tokens"] for record in straight]
    compared = straight if optimizer == "adamw" else straight[-1:]
    for record, other in zip(compared, elastic[-len(compared) :], strict=True):
        assert other["loss"] == pytest.approx(record["loss"], rel=tolerance), record["step"]


def test_another_micro_batch_sees_the_same_sequences(tmp_path):
    for name in ("two", "eight"):
        (tmp_path / name).mkdir()
    two, eight = write_recipe(tmp_path / "two"), write_recipe(tmp_path / "eight", micro_batch=8)
    train(two)
    train(eight)
    assert [r["data_digest"] for r in steps(two)] == [r["data_digest"] for r in steps(eight)]
    assert [r["loss"] for r in steps(eight)] == pytest.approx([r["loss"] for r in steps(two)], rel=1e-4)


def test_the_change_of_processes_is_said(tmp_path):
    recipe = write_recipe(tmp_path, max_steps=10)
    train(recipe)
    said = train(recipe, "max_steps=12", num_processes=2)
    assert "2 processes now, 1 before" in said
    says(said, "random streams")
