"""Runs that go wrong: a loss that is not finite, an interrupt at an awkward step, checkpoints that are gone, a full disk."""

import builtins
import errno
import functools
import io
import os
import shutil

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.launching import Started, checkpoint, outcome, records, start, steps, train, wait_for_step, write_recipe
from tests.messages import line_of, says
from trainer.checkpoint.format.manifest import read_manifest
from trainer.journal import read_events


@pytest.mark.parametrize("number", range(8, 25, 8))
def test_an_evaluation_that_is_due_is_taken_also_when_the_run_is_interrupted_there(tmp_path, number):
    recipe = write_recipe(tmp_path, max_steps=number, checkpoint={"every_steps": 100})
    train(recipe)
    assert [record["step"] for record in records(recipe) if "val_loss" in record] == list(range(8, number + 1, 8))


def test_a_run_whose_checkpoints_are_gone_does_not_start_over(tmp_path):
    recipe = write_recipe(tmp_path, max_steps=10)
    train(recipe)
    before = records(recipe)
    shutil.move(tmp_path / "checkpoints", tmp_path / "unmounted")
    said = train(recipe, "max_steps=12", exit_code=2)
    says(said, "tiny", "checkpoints")
    assert records(recipe) == before

    shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
    shutil.move(tmp_path / "unmounted", tmp_path / "checkpoints")
    train(recipe, "max_steps=12")
    assert [record["step"] for record in steps(recipe)] == list(range(1, 13))
    assert "lost_history" not in [event["event"] for event in read_events(tmp_path / "runs/tiny")]

    shutil.rmtree(tmp_path / "runs/tiny")
    train(recipe, "max_steps=13")
    lost = [event for event in read_events(tmp_path / "runs/tiny") if event["event"] == "lost_history"]
    assert [(event["step"], event["lacking"]) for event in lost] == [(12, ["metrics.jsonl", "journal.jsonl"])]


def test_a_run_killed_inside_its_very_first_save_starts_again_by_itself(tmp_path):
    """The curve reaches the step of the save, and nothing was committed: there is nothing to go back to, and nothing is lost."""
    recipe = write_recipe(
        tmp_path, checkpoint={"every_steps": 5, "keep_best": 0}, max_steps=9, evaluation={"every_steps": 99}
    )
    run = start(recipe, "checkpoint.every_steps=99", "max_steps=400", "schedule.warmup_steps=4")
    wait_for_step(recipe, 12, run)
    run.kill()
    assert not list((tmp_path / "checkpoints/tiny").glob("step-*"))
    train(recipe)
    assert [record["step"] for record in steps(recipe)] == list(range(1, 10))


def test_a_recipe_whose_model_lost_a_setting_does_not_continue_another_model(tmp_path):
    config = {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    recipe = write_recipe(tmp_path, max_steps=5, model={"config": {**config, "rms_norm_eps": 1e-3}})
    train(recipe)
    write_recipe(tmp_path, max_steps=8, model={"config": config})
    said = train(recipe, exit_code=2)
    line_of(said, "model.rms_norm_eps", "1e-06", "0.001")
    write_recipe(tmp_path, max_steps=8, model={"config": {**config, "rms_norm_eps": 1e-3, "hidden_act": "silu"}})
    said = train(
        recipe, "optimizer.name=muon", "optimizer.lr=0.001", "global_batch=4", "resume.allow_changes=[optimizer]"
    )
    assert steps(recipe)[-1]["step"] == 8
    (event,) = [event for event in read_events(tmp_path / "runs/tiny") if event["event"] == "change"]
    assert event["step"] == 5
    assert event["changes"] == {
        "optimizer": ["adamw", "muon"],
        "max_steps": [5, 8],
        "global_batch": [8, 4],
        "optimizer.lr": [0.003, 0.001],
    }
    line_of(
        said,
        "step 5",
        "optimizer adamw -> muon",
        "max_steps 5 -> 8",
        "global_batch 8 -> 4",
        "optimizer.lr 0.003 -> 0.001",
    )
    drawn = EventAccumulator(str(tmp_path / "runs/tiny")).Reload()
    assert b"| global_batch | `8` | `4` |" in drawn.Tensors("run/changes/text_summary")[0].tensor_proto.string_val[0]
    assert b"muon" in drawn.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    assert read_manifest(checkpoint(recipe, 8)).identity["optimizer"] == "muon"


def test_other_validation_data_does_not_compete_for_best(tmp_path):
    recipe = write_recipe(
        tmp_path, max_steps=8, evaluation={"every_steps": 4}, checkpoint={"every_steps": 4, "keep_last": 9}
    )
    train(recipe)
    said = train(recipe, "max_steps=16", "evaluation.num_sequences=2", "evaluation.every_steps=4")
    says(said, "validation data")
    best = (tmp_path / "checkpoints/tiny/best").resolve()
    assert int(best.name[5:]) > 8


def test_a_branch_from_another_run_killed_before_its_first_save_goes_on_as_that_branch(tmp_path):
    recipe = write_recipe(tmp_path, max_steps=12, checkpoint={"every_steps": 6, "keep_last": 9})
    train(recipe, "name=other")
    train(recipe, "max_steps=6")
    path = f"resume_from_checkpoint={checkpoint(recipe, 12, 'other')}"
    run = start(
        recipe,
        path,
        "max_steps=400",
        "checkpoint.every_steps=200",
        "metrics.console_every_steps=100",
        "evaluation.every_steps=400",
    )
    wait_for_step(recipe, 14, run)
    run.kill()
    said = train(recipe, "max_steps=20")
    assert "resumed from" in said
    assert "step 12 of 20" in said
    assert (tmp_path / "checkpoints/tiny/.abandoned-step-00000006").is_dir()


def test_going_back_to_an_abandoned_branch_leaves_the_other_one_whole(tmp_path):
    """Checkpoints, curve and TensorBoard of the branch that is left do not mix with those of the branch that is taken up again."""
    recipe = write_recipe(tmp_path, max_steps=24, checkpoint={"every_steps": 6, "keep_last": 9})
    train(recipe)
    train(recipe, "resume_from_checkpoint=12", "optimizer.lr=0.001", "max_steps=20")
    aside = tmp_path / "checkpoints/tiny/.abandoned-step-00000024"
    said = train(recipe, f"resume_from_checkpoint={aside}", "max_steps=28")
    line_of(said, "step-00000020", "branch")
    line_of(said, "metrics.lost.jsonl")
    assert [path.name for path in sorted((tmp_path / "checkpoints/tiny").glob("step-*"))] == [
        "step-00000024",
        "step-00000028",
    ]
    assert [record["step"] for record in steps(recipe)] == [25, 26, 27, 28]
    drawn = EventAccumulator(str(tmp_path / "runs/tiny")).Reload()
    assert [event.step for event in drawn.Scalars("Loss/train")] == [25, 26, 27, 28]
    says(train(recipe, "max_steps=28"), "28 steps")


def runs_folder_is_full_from_step(step, folder):
    """From this step on nothing can be written into the run's folder in runs/; its checkpoints have a disk of their own."""
    from trainer.data.loader import TokenLoader

    whole, opened = TokenLoader.batches, builtins.open

    def full(path, mode="r", *more, **options):
        if not isinstance(path, int) and os.fsdecode(path).startswith(folder) and set(mode) & set("wax+"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(path, mode, *more, **options)

    def batches(self, sequences):
        for number, batch in enumerate(whole(self, sequences), start=1):
            if number == step:
                builtins.open = io.open = full
            yield batch

    TokenLoader.batches = batches


def test_a_run_whose_runs_folder_is_full_at_the_end_is_finished_all_the_same(tmp_path):
    recipe = write_recipe(tmp_path, max_steps=10)
    run = Started(recipe, (), 1, functools.partial(runs_folder_is_full_from_step, 7, str(tmp_path / "runs")))
    assert run.wait() == 0, run.text()
    said = run.text()
    assert "Traceback" not in said
    assert "error:" not in said
    line_of(said, "tensorboard", "No space left on device")
    line_of(said, "finished", "export", "start it again")
    line_of(said, "outcome.json", "No space left on device", "finished")
    assert checkpoint(recipe, 10).is_dir()
    assert outcome(recipe)["outcome"] == "running"

    train(recipe)
    assert outcome(recipe)["outcome"] == "finished"
    assert outcome(recipe)["exported_step"] == 10
