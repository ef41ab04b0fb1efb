import json
import shlex

import pytest

from tests.messages import line_of, refuses, says
from tests.small_checkpoints import commit
from trainer import locks
from trainer.config.folders import checkpoints_folder, find_checkpoints, find_run, run_folder
from trainer.config.load import dump, load
from trainer.ending.outcome_file import read_outcome, write_outcome, write_refusal
from trainer.ending.outcomes import Ending, Outcome
from trainer.errors import TrainerError
from trainer.journal import Journal
from trainer.report import SAMPLE_TITLE, last_line, report


def test_a_run_is_reported_from_its_files_alone(store, tmp_path, project):
    folder = tmp_path / "runs" / "mine"
    facts = {"sample": "To be\nor not", "exported": "here/exported", "resume": "resume exact: 1/1"}
    facts["sample"] += "\x1b[2J"
    write_outcome(folder, "finished", step=3, reason="all 3 steps were taken", **facts)
    records = [{"step": n, "loss": 4.0 - n, "tokens": n * 1000, "step_seconds": 20.0} for n in (1, 2, 3)]
    records.append({"step": 3, "val_loss": 2.25, "bits_per_byte": 1.5})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    commit(store, 3)
    text = report("mine", folder, store.folder, {"bigram": 5.14, "unigram": 6.27})
    says(
        text,
        "finished",
        "step 3",
        "3k tokens",
        "1m 0s",
        "resume exact: 1/1",
        "training loss",
        "2.250",
        "1.500",
        "5.140",
        "6.270",
    )
    says(text, SAMPLE_TITLE, "To be or not\ufffd[2J", store.folder, folder, "here/exported")
    says(text, "launch.sh generate mine", "launch.sh tensorboard mine", "launch.sh checkpoints ls mine")


def test_a_validation_loss_that_is_no_number_is_called_that(store, tmp_path):
    write_outcome(tmp_path / "mine", "diverged", step=2, reason="because")
    records = [{"step": 1, "val_loss": 2.0, "bits_per_byte": 1.5}, {"step": 2, "val_loss": None, "bits_per_byte": None}]
    (tmp_path / "mine" / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    line_of(report("mine", tmp_path / "mine", store.folder, None), "validation loss", "finite", "step 2")


def test_a_run_ends_with_what_it_came_to(tmp_path):
    says(
        last_line(Ending(Outcome.INTERRUPTED, "SIGTERM was received"), 0, tmp_path),
        "interrupted",
        "step 0",
        "SIGTERM was received",
    )
    records = [{"step": n, "loss": 4.0, "tokens": n * 1000, "step_seconds": 20.0} for n in (1, 2, 3)]
    records[2:2] = [{"step": 2, "val_loss": 3.5}]
    curve = tmp_path / "metrics.jsonl"
    curve.write_text("".join(json.dumps(record) + "\n" for record in records))
    came_to = "finished at step 3: done; 3k tokens in 1m 0s of training, 50 tokens/s; validation loss 3.5000 at step 2"
    assert last_line(Ending(Outcome.FINISHED, "done"), 3, tmp_path) == came_to
    curve.write_text(curve.read_text() + '{"step": 3, "val_loss": 3.25}\n')
    assert last_line(Ending(Outcome.FINISHED, "done"), 3, tmp_path) == f"{came_to}, 3.2500 at step 3"
    curve.write_text(curve.read_text() + '{"step": 3, "val_loss": null}\n')
    assert last_line(Ending(Outcome.FINISHED, "done"), 3, tmp_path) == came_to


def test_the_newest_accuracy_of_each_task_stands_beside_that_of_guessing(store, tmp_path):
    write_outcome(tmp_path / "mine", "finished", step=2, reason="because")
    facts = [
        {"lines/acc": 0.2, "lines/acc_norm": 0.3, "lines/chance": 0.25},
        {"lines/acc": 0.314, "lines/acc_norm": 0.29, "lines/chance": 0.25},
    ]
    records = [{"step": n, "val_loss": 2.0, **some} for n, some in enumerate(facts, start=1)]
    records += [
        {"step": 3, "val_loss": 2.0, "words/acc": 0.5, "words/perplexity": 9.0},
        {"step": 4, "loss": 2.0, "tokens": 9, "step_seconds": 1.0},
    ]
    (tmp_path / "mine" / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    said = report("mine", tmp_path / "mine", store.folder, None)
    assert "\n\n  lines  acc 0.31, acc_norm 0.29 (chance 0.25)\n  words  acc 0.50\n\n" in said


def test_a_run_that_was_killed_at_its_start_is_reported_too(store, tmp_path):
    write_outcome(tmp_path / "mine", "running", step=0, reason="started")
    text = report("mine", tmp_path / "mine", store.folder, None)
    line_of(text, "mine", "running", "step 0", "started")
    assert "nats" not in text
    assert SAMPLE_TITLE not in text


def test_a_run_that_is_running_stands_at_the_last_step_of_its_curve(store, tmp_path):
    write_outcome(tmp_path / "mine", "running", step=10, reason="training")
    records = [{"step": n, "loss": 4.0, "tokens": n * 1000, "step_seconds": 1.0} for n in (11, 12)]
    (tmp_path / "mine" / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    line_of(report("mine", tmp_path / "mine", store.folder, None), "mine", "running", "step 12", "training")
    write_outcome(tmp_path / "mine", "interrupted", step=11, reason="SIGTERM was received")
    line_of(report("mine", tmp_path / "mine", store.folder, None), "mine", "interrupted", "step 11")


FALLBACK = {"event": "start", "precision": "bf16", "instead_of": "fp8", "because": "there is no CUDA device"}
FP8 = {"event": "start", "precision": "fp8"}
BACK = {"event": "precision", "mode": "bf16", "reason": "the loss in fp8 was above bf16's"}


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ([{"event": "start", "precision": "no"}], ["fp32"]),
        ([FP8], ["fp8"]),
        ([FALLBACK], ["bf16", "fp8", FALLBACK["because"]]),
        ([FP8, BACK], ["fp8, then bf16", BACK["reason"]]),
        (
            [FP8, BACK, FP8, {**BACK, "reason": "before", "resumed": True}],
            ["fp8, then bf16", BACK["reason"]],
        ),
        ([FP8, BACK, {"event": "start", "precision": "bf16"}, FP8], ["fp8, then bf16, then fp8"]),
    ],
)
def test_what_it_computed_in_is_told_with_the_reason_where_it_is_not_what_was_asked_for(store, tmp_path, events, words):
    write_outcome(tmp_path / "mine", "finished", step=10, reason="all 10 steps were taken")
    (tmp_path / "mine" / "journal.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    line_of(report("mine", tmp_path / "mine", store.folder, None), "computed", *words)


def test_a_start_that_was_refused_is_told_beside_the_outcome(store, tmp_path):
    write_outcome(tmp_path / "mine", "finished", step=10, reason="all 10 steps were taken")
    write_refusal(tmp_path / "mine", read_outcome(tmp_path / "mine"), "there is no data")
    said = report("mine", tmp_path / "mine", store.folder, None)
    line_of(said, "mine", "finished", "step 10")
    line_of(said, "refused", "there is no data")


def test_what_a_finished_run_left_undone_is_told(store, tmp_path):
    write_outcome(tmp_path / "mine", "finished", step=10, reason="because", untidy="its export failed: full")
    said = report("mine", tmp_path / "mine", store.folder, None)
    line_of(said, "mine", "finished", "step 10", "because")
    line_of(said, "export", "full")


@pytest.mark.parametrize(
    "settings",
    [
        ["runs_folder=my disk/runs"],
        ["runs_folder=disk/runs", "checkpoints_folder=disk/c"],
        ["checkpoints_folder=disk/c"],
        [],
    ],
)
def test_what_it_names_next_finds_the_run_wherever_its_folders_are(project, settings):
    config = load("shakespeare", ["name=mine", *settings]).config
    folder = run_folder(config)
    write_outcome(folder, "finished", step=10, reason="because")
    (folder / "config.yaml").write_text(dump(config))
    (checkpoints_folder(config) / "step-00000010").mkdir(parents=True)
    lines = report("mine", folder, checkpoints_folder(config), None).split("Next:\n")[1].splitlines()
    generate, tensorboard, checkpoints = map(shlex.split, lines)
    assert generate[2] == checkpoints[3] == ("mine" if config.runs_folder == "runs" else str(folder))
    assert find_checkpoints(generate[2]) == checkpoints_folder(config)
    assert find_run(generate[2]) == folder
    assert tensorboard == [generate[0], "tensorboard", generate[2]]


def test_a_run_that_never_was_is_an_error(store, tmp_path):
    with refuses(TrainerError, "mine"):
        report("mine", tmp_path / "mine", store.folder, None)


# What one wants next


def next_lines(folder, store, **changes):
    said = report(
        "mine",
        folder,
        store.folder,
        None,
        **{"prompt": "1. Remove the cover", "command": "./launch.sh cpu mine.yaml", **changes},
    )
    return [line.strip() for line in said.partition("Next:\n")[2].splitlines()]


@pytest.mark.parametrize("kind", ["interrupted", "failed", "diverged", "refused", "running"])
def test_what_continues_a_run_that_ended_early_comes_first(store, project, kind):
    folder = project / "runs" / "mine"
    write_outcome(folder, kind, step=0, reason="because")
    lines = next_lines(folder, store)
    assert lines[0].startswith("./launch.sh cpu mine.yaml")
    assert "no checkpoint was made" in lines[0]
    assert lines[1:] == ["./launch.sh tensorboard mine"], "there is nothing to generate with, and nothing to list"
    commit(store, 5)
    lines = next_lines(folder, store)
    assert lines[0].startswith("./launch.sh cpu mine.yaml")
    assert "from step 5" in lines[0]
    assert ("optimizer.lr=" in lines[0]) == (kind == "diverged")
    assert lines[1] == "./launch.sh generate mine --prompt '1. Remove the cover'"


def test_a_finished_run_is_asked_with_the_recipes_own_prompt(store, project):
    folder = project / "runs" / "mine"
    write_outcome(folder, "finished", step=5, reason="because")
    commit(store, 5)
    assert next_lines(folder, store)[0] == "./launch.sh generate mine --prompt '1. Remove the cover'"
    assert next_lines(folder, store, prompt="")[0] == "./launch.sh generate mine"


def test_a_run_that_is_alive_is_to_be_watched(store, project):
    folder = project / "runs" / "mine"
    write_outcome(folder, "running", step=0, reason="training")
    with locks.take(folder / ".lock"):
        assert next_lines(folder, store)[0] == f"tail -f {folder / 'train.log'}"


def test_the_command_is_what_was_typed_at_the_last_launch(store, project, tmp_path, monkeypatch):
    folder = project / "runs" / "mine"
    write_outcome(folder, "interrupted", step=5, reason="because")
    settings = folder / "config.yaml"
    assert next_lines(folder, store, command="")[0].startswith(f"./launch.sh {settings}")
    journal = Journal(folder)
    journal.write("launch", command="./launch.sh cpu a.yaml", folder=str(tmp_path))
    journal.write("launch", command="./launch.sh cpu 'my b.yaml'", folder=str(tmp_path))
    assert next_lines(folder, store, command="")[0].startswith(f"cd {tmp_path} && ./launch.sh cpu 'my b.yaml'")
    monkeypatch.chdir(tmp_path)
    assert next_lines(folder, store, command="")[0].startswith("./launch.sh cpu 'my b.yaml'")
