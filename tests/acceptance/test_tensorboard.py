"""What TensorBoard reads of a run that was killed and resumed: everything, and nothing twice."""

from tests.events import drawn_twice, events_of
from tests.launching import checkpoint, records, start, steps, train, wait_for_step, write_recipe
from trainer.metrics.tags import drawn


def killed_and_resumed(tmp_path, kills, **changes):
    """A run that is killed whenever its curve has one of these steps, until it finishes."""
    recipe = write_recipe(tmp_path, **changes)
    for step in kills:
        run = start(recipe)
        wait_for_step(recipe, step, run)
        run.kill()
    train(recipe)
    return recipe


def test_after_three_kills_every_number_is_there_and_none_twice(tmp_path):
    recipe = killed_and_resumed(tmp_path, (7, 13, 21))
    events = events_of(recipe)
    assert [event.step for event in events.Scalars("Loss/train")] == list(range(1, 25))
    assert drawn_twice(events) == []
    expected = {(tag, record["step"]) for record in records(recipe) for tag in drawn(record)}
    found = {(tag, event.step) for tag in events.Tags()["scalars"] for event in events.Scalars(tag)}
    assert found == expected, "TensorBoard is a drawing of metrics.jsonl"
    losses = {record["step"]: record["loss"] for record in steps(recipe)}
    assert all(abs(event.value - losses[event.step]) < 1e-5 for event in events.Scalars("Loss/train"))
    assert {"run/config/text_summary", "run/precision/text_summary", "run/curves/text_summary"} <= set(
        events.Tags()["tensors"]
    )
    assert len(events.PluginTagToContent("hparams")) == 3, "settings, the start and the end of the session"


def test_a_run_that_goes_back_leaves_nothing_of_the_branch_it_left(tmp_path):
    recipe = write_recipe(tmp_path, checkpoint={"keep_last": 9})
    train(recipe)
    before = [event.value for event in events_of(recipe).Scalars("Loss/train")]
    train(recipe, "resume_from_checkpoint=10", "optimizer.lr=0.01", "max_steps=20")
    assert checkpoint(recipe, 20).is_dir()
    events = events_of(recipe)
    assert [event.step for event in events.Scalars("Loss/train")] == list(range(1, 21))
    assert drawn_twice(events) == []
    after = [event.value for event in events.Scalars("Loss/train")]
    assert after[:10] == before[:10]
    assert after[11:] != before[11:20]


def test_a_finished_run_that_goes_on_is_not_finished_until_it_is(tmp_path):
    recipe = write_recipe(tmp_path, max_steps=6)

    def is_finished():
        return "_hparams_/session_end_info" in events_of(recipe).PluginTagToContent("hparams")

    train(recipe)
    assert is_finished()
    run = start(recipe, "max_steps=100000")
    wait_for_step(recipe, 12, run)
    run.kill()
    assert not is_finished()
    last = records(recipe)[-1]["step"] + 20
    train(recipe, f"max_steps={last}")
    assert is_finished()
    assert drawn_twice(events_of(recipe)) == []
