"""What is known of a run from its folder, and which runs compare."""

import json

import pytest
import yaml

from tests.messages import refuses
from tests.written_runs import losses, write_run
from trainer.checkpoint.format.manifest import MANIFEST, Manifest, to_json
from trainer.errors import TrainerError
from trainer.tools.compare.runs import (
    is_one_recipe,
    read_runs,
    same_batches,
    same_held_out,
    same_text,
    same_training_data,
    same_vocabulary,
    setting_differences,
    version_differences,
)


def two(tmp_path, **second):
    return read_runs([str(write_run(tmp_path, "a", losses(20))), str(write_run(tmp_path, "b", losses(20), **second))])


def write_checkpoint(project, name, **facts):
    folder = project / "checkpoints" / name / "step-00000020"
    folder.mkdir(parents=True)
    manifest = Manifest(
        step=20, sequences=200, tokens=20_000, reason="final", created="2026-11-01T00:00:00+00:00", **facts
    )
    (folder / MANIFEST).write_text(to_json(manifest))


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.files.project_folder", lambda: tmp_path)


def test_a_run_is_found_by_name_and_by_folder(tmp_path):
    folder = write_run(tmp_path, "a", losses(20))
    write_run(tmp_path, "b", losses(20))
    assert [run.name for run in read_runs([str(folder), "b"])] == ["a", "b"]


def test_two_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    runs = read_runs([str(write_run(tmp_path / place, "a", losses(20))) for place in ("here", "there")])
    assert [run.name for run in runs] == [str(tmp_path / "here/runs/a"), str(tmp_path / "there/runs/a")]


def test_one_run_alone_is_refused(tmp_path):
    write_run(tmp_path, "a", losses(20))
    with refuses(TrainerError, "two runs", "compare A B"):
        read_runs(["a"])


def test_a_run_that_is_not_there_is_answered_with_the_nearest_name(tmp_path):
    write_run(tmp_path, "shakespeare", losses(20))
    with refuses(TrainerError, "'shakespear'", "'shakespeare'"):
        read_runs(["shakespeare", "shakespear"])


def test_the_same_run_twice_is_refused_however_it_is_named(tmp_path):
    folder = write_run(tmp_path, "a", losses(20))
    (tmp_path / "link").symlink_to(folder)
    with refuses(TrainerError, "link", "a"):
        read_runs(["a", str(tmp_path / "link")])


@pytest.mark.parametrize("content", [None, "", '{"step": 1, "tokens": 9, "val_loss": 3.0}\n'])
def test_a_run_without_a_step_is_refused(tmp_path, content):
    write_run(tmp_path, "a", losses(20))
    path = write_run(tmp_path, "b", []) / "metrics.jsonl"
    path.unlink() if content is None else path.write_text(content)
    with refuses(TrainerError, "b", path):
        read_runs(["a", "b"])


def test_precision_and_processes_are_those_of_every_launch(tmp_path):
    a, b = two(tmp_path)
    assert (a.precision, a.processes, a.machine, a.outcome) == ("bf16", "4", "4 processes on a GPU each", "finished")
    with open(tmp_path / "runs/b/journal.jsonl", "a") as file:
        for precision, processes in (("bf16", 4), ("fp8", 4), ("bf16", 8)):
            file.write(json.dumps({"event": "start", "precision": precision, "processes": processes}) + "\n")
    _, b = read_runs(["a", "b"])
    assert (b.precision, b.processes) == ("bf16, then fp8, then bf16", "4, then 8")


def test_a_run_that_went_back_to_bf16_is_not_called_fp8(tmp_path):
    two(tmp_path)
    with open(tmp_path / "runs/b/journal.jsonl", "w") as file:
        for event in (
            {"event": "start", "precision": "fp8"},
            {"event": "precision", "mode": "bf16"},
            {"event": "start", "precision": "fp8"},
            {"event": "precision", "mode": "bf16", "resumed": True},
        ):
            file.write(json.dumps(event) + "\n")
    assert read_runs(["a", "b"])[1].precision == "fp8, then bf16"


def test_a_precision_that_the_journal_lacks_is_the_newest_checkpoints_or_unknown(tmp_path):
    for name in "ab":
        write_run(tmp_path, name, losses(20), precision=None)
    write_checkpoint(tmp_path, "a", precision="fp8", versions={"torch": "2.13"})
    (tmp_path / "runs/b/outcome.json").unlink()
    a, b = read_runs(["a", "b"])
    assert (a.precision, b.precision, b.outcome) == ("fp8", "unknown", "unknown")
    assert a.versions == {"torch": "2.13"}
    assert version_differences([a, b]) == {}
    write_checkpoint(tmp_path, "b", versions={"torch": "2.11"})
    assert version_differences(read_runs(["a", "b"])) == {"torch": ["2.13", "2.11"]}


def test_the_seed_the_micro_batch_and_the_cadence_of_checkpoints_do_not_make_another_recipe(tmp_path):
    cadence = {"checkpoint": {"keep_last": 9}, "precision": {"statistics_every_steps": 7, "required": True}}
    a, b = two(tmp_path, seed=2, settings={"micro_batch": 5, **cadence})
    assert is_one_recipe(a, b)
    assert not same_batches(a, b)
    assert setting_differences([a, b]) == {
        "micro_batch": [10, 5],
        "seed": [1, 2],
        "checkpoint.keep_last": [None, 9],
        "precision.statistics_every_steps": [None, 7],
        "precision.required": [None, True],
    }


def test_a_setting_that_came_in_between_does_not_make_another_recipe(tmp_path):
    a, b = two(tmp_path)
    config = b.folder / "config.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                **yaml.safe_load(config.read_text()),
                "max_tokens": None,
                "resume": {"allow_changes": ["seed"]},
                "profile": {"memory_history": False},
            }
        )
    )
    assert is_one_recipe(*read_runs(["a", "b"]))
    config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), "deterministic": False}))
    assert not is_one_recipe(*read_runs(["a", "b"]))


@pytest.mark.parametrize(
    "change",
    [{"precision": "fp8"}, {"settings": {"optimizer": {"lr": 0.1}}}, {"settings": {"precision": {"recipe": "block"}}}],
)
def test_precision_its_recipe_and_the_learning_rate_make_another_recipe_on_the_same_batches(tmp_path, change):
    a, b = two(tmp_path, **change)
    assert not is_one_recipe(a, b)
    assert same_batches(a, b)


def test_a_digest_that_differs_once_or_is_absent_means_other_batches(tmp_path):
    a, b = two(tmp_path)
    path = b.folder / "metrics.jsonl"
    path.write_text(path.read_text().replace('"1-15"', '"other"'))
    assert not same_batches(*read_runs(["a", "b"]))
    for name in "ab":
        path = tmp_path / "runs" / name / "metrics.jsonl"
        path.write_text(path.read_text().replace('"data_digest"', '"something"'))
    assert not same_batches(*read_runs(["a", "b"]))


def test_runs_whose_steps_end_at_other_tokens_have_other_batches(tmp_path):
    assert not same_batches(*two(tmp_path, step_tokens=1301))


def test_tokenizers_and_held_out_data_are_told_by_the_settings(tmp_path):
    a, b = two(tmp_path, settings={"data": {"corpus": "plays", "tokenizer": "gpt2"}})
    assert not same_vocabulary(a, b)
    assert not same_held_out(a, b)
    assert same_text(a, b)
    assert same_training_data(a, b)
    (tmp_path / "runs/b/config.yaml").write_text(
        yaml.safe_dump({**yaml.safe_load((a.folder / "config.yaml").read_text()), "data": {"corpus": "poems"}})
    )
    a, b = read_runs(["a", "b"])
    assert not same_text(a, b)
    assert not same_training_data(a, b)


def test_checkpoints_of_both_tell_it_better(tmp_path):
    a, b = two(tmp_path, settings={"data": {"train": ["a/moved/place/*.bin"], "tokenizer": "copy.tiktoken"}})
    assert not same_vocabulary(a, b)
    assert not same_training_data(a, b)
    for name in "ab":
        write_checkpoint(
            tmp_path, name, identity={"tokenizer": "f00d", "training_data": "beef"}, vocab_size=9, validation="cafe"
        )
    a, b = read_runs(["a", "b"])
    assert same_vocabulary(a, b)
    assert same_training_data(a, b)
    assert same_held_out(a, b)


def test_a_config_of_another_version_is_read_as_it_is(tmp_path):
    a, b = two(tmp_path, settings={"a_setting_of_next_year": {"depth": 3}})
    assert setting_differences([a, b]) == {"a_setting_of_next_year.depth": [None, 3]}
