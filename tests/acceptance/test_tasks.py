"""Tasks in the loop and by command: no trace on the run, the same numbers for one and two ranks, mistakes told before the first step."""

import json
import math
from pathlib import Path

import pytest
import yaml

from tests.commands import paragraph, trainer
from tests.launching import Started, checkpoint, final_bytes, outcome, records, train, write_recipe
from tests.messages import line_of, says

TIES = [
    {"query": "To be", "choices": ["or not", "or not", "or not"], "gold": 0},
    {"query": "To be", "choices": ["or not", "or not "], "gold": 1},
    *(
        {"query": "Give me excess of it", "choices": ["a" * length, "b" * length, "a" * length], "gold": 2}
        for length in range(1, 40)
    ),
]
"""Texts that are equally likely, and nearly so."""
WORDS = [{"context": "word " * length, "continuation": "again"} for length in range(1, 30)]


def write_tasks(folder: Path) -> dict:
    """Two files of items, and the recipe's section that names them and the built-in task."""
    for name, items in (("ties", TIES), ("words", WORDS)):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in items))
    return {"tasks": ["shakespeare_lines", str(folder / "ties.jsonl"), str(folder / "words.jsonl")], "task_items": 12}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The recipe of a run of 24 steps that asked its tasks at every validation."""
    folder = tmp_path_factory.mktemp("tasks")
    recipe = write_recipe(folder, evaluation=write_tasks(folder))
    train(recipe)
    return recipe


def evaluations(recipe: Path) -> list[dict]:
    return [record for record in records(recipe) if "val_loss" in record]


def put(recipe: Path, *words: str, num_processes: int = 1, exit_code: int = 0) -> str:
    """What `trainer eval` of the finished run says."""
    run = Started(recipe.parent / "runs" / "tiny", words, num_processes, command="eval")
    assert run.wait() == exit_code, run.text()
    return run.text()


def test_a_run_writes_the_tasks_down_with_each_validation_loss(finished):
    names = {
        "shakespeare_lines/acc",
        "shakespeare_lines/acc_norm",
        "ties/acc",
        "ties/acc_norm",
        "words/acc",
        "words/perplexity",
    }
    found = evaluations(finished)
    assert [record["step"] for record in found] == [8, 16, 24]
    assert all(names <= record.keys() for record in found)
    assert found[-1]["shakespeare_lines/chance"] == 0.25
    assert "words/chance" not in found[-1]


def test_tasks_leave_no_trace_on_the_run(finished, tmp_path):
    recipe = write_recipe(tmp_path)
    train(recipe)
    assert final_bytes(recipe) == final_bytes(finished)
    assert [r["val_loss"] for r in evaluations(recipe)] == [r["val_loss"] for r in evaluations(finished)]


def test_tasks_are_asked_at_multiples_of_their_own_interval_and_at_the_end(tmp_path):
    recipe = write_recipe(tmp_path, evaluation={**write_tasks(tmp_path), "every_steps": 4, "tasks_every_steps": 16})
    train(recipe)
    assert [r["step"] for r in evaluations(recipe) if "ties/acc" in r] == [16, 24]
    assert len(evaluations(recipe)) == 6


def test_one_and_two_ranks_say_the_same_to_the_last_bit(finished):
    tasks = (
        "--tasks",
        f"{finished.parent / 'ties.jsonl'},{finished.parent / 'words.jsonl'}",
        "--tasks",
        "shakespeare_lines",
    )
    path = finished.parent / "runs" / "tiny" / "evaluations.jsonl"
    path.unlink(missing_ok=True)
    said = [put(finished, *tasks, num_processes=ranks) for ranks in (1, 2)]
    one, two = (
        [{**json.loads(line), "time": None} for line in lines] for lines in halves(path.read_text().splitlines())
    )
    assert one == two
    assert [record["task"] for record in one] == ["ties", "words", "shakespeare_lines"]
    ties, words, lines = one
    # Of equals the first is chosen: right where it is, wrong where the last would be.
    assert ties["num_items"] == len(TIES)
    assert ties["acc"] <= 2 / len(TIES)
    assert words["perplexity"] > 1
    assert (lines["num_items"], lines["chance"], lines["step"]) == (300, 0.25, 24)
    assert all(text.count("shakespeare_lines    300  ") == 1 for text in said), said


def halves(lines):
    return lines[: len(lines) // 2], lines[len(lines) // 2 :]


def test_the_command_takes_a_checkpoint_a_limit_and_speaks_to_programs(finished):
    text = put(finished, "--tasks", "shakespeare_lines", "--limit", "5", "--checkpoint", "20", "--json")
    (record,) = json.loads(text[text.index("[\n") :])
    assert record["num_items"] == 5
    assert record["step"] == 20
    assert record["checkpoint"] == str(checkpoint(finished, 20))
    assert "shakespeare_lines 100%" in text


def test_the_numbers_of_the_loop_are_those_of_the_command(finished):
    text = put(finished, "--tasks", f"shakespeare_lines,{finished.parent / 'words.jsonl'}", "--limit", "12", "--json")
    lines, words = json.loads(text[text.index("[\n") :])
    last = evaluations(finished)[-1]
    assert (lines["acc"], lines["acc_norm"]) == (last["shakespeare_lines/acc"], last["shakespeare_lines/acc_norm"])
    assert (words["acc"], words["perplexity"]) == (last["words/acc"], last["words/perplexity"])


# The loss on held-out text


@pytest.mark.parametrize("num_processes", [1, 2])
def test_without_tasks_the_command_takes_the_validation_loss_that_the_run_had_there(finished, num_processes):
    text = put(finished, "--checkpoint", "16", "--json", num_processes=num_processes)
    (record,) = json.loads(text[text.index("[\n") :])
    (in_the_run,) = (one for one in evaluations(finished) if one["step"] == 16)
    assert record["loss"] == pytest.approx(in_the_run["val_loss"], abs=1e-6)
    assert record["num_tokens"] > 0
    assert record["bits_per_byte"] == pytest.approx(in_the_run["bits_per_byte"], abs=1e-6)
    assert (record["step"], record["task"], record["precision"]) == (16, "validation_loss", "no")
    assert json.loads((finished.parent / "runs" / "tiny" / "evaluations.jsonl").read_text().splitlines()[-1]) == record
    assert "held-out" not in text


def test_the_loss_on_other_text_is_that_of_its_held_out_shards_and_comes_beside_tasks(finished, tmp_path):
    (tmp_path / "text.txt").write_text("To be, or not to be: that is the question.\n" * 200)
    words = ("--out", str(tmp_path / "corpus"), "--tokenizer", "bytes", "--validation-fraction", "0.5")
    assert trainer("prepare", str(tmp_path / "text.txt"), *words).code == 0
    text = put(finished, "--data", str(tmp_path / "corpus"), "--tasks", "shakespeare_lines", "--limit", "5", "--json")
    loss, lines = json.loads(text[text.index("[\n") :])
    assert (loss["task"], loss["data"], lines["task"]) == (
        "validation_loss",
        str(tmp_path / "corpus"),
        "shakespeare_lines",
    )
    sequence_length = yaml.safe_load(finished.read_text())["sequence_length"]
    assert loss["num_tokens"] == 5 * sequence_length
    assert loss["perplexity"] == pytest.approx(math.exp(loss["loss"]))
    assert loss["bits_per_byte"] == pytest.approx(loss["loss"] / math.log(2), rel=0.05)  # a byte a token


# Mistakes


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_broken_task_file_is_told_once_by_the_command(finished, tmp_path, num_processes):
    (tmp_path / "broken.jsonl").write_text('{"query": "x", "choices": ["a", "b"], "gold": 5}\n')
    told = paragraph(
        put(finished, "--tasks", str(tmp_path / "broken.jsonl"), num_processes=num_processes, exit_code=2).lstrip()
    )
    assert f"{tmp_path / 'broken.jsonl'}, line 1: gold is 5" in told


def test_no_task_at_all_is_a_mistake(finished):
    says(paragraph(trainer("eval", str(finished.parent / "runs" / "tiny"), "--tasks", ",").err), "--tasks")


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_broken_task_file_is_refused_before_the_first_step(tmp_path, dry_run):
    recipe = write_recipe(tmp_path, evaluation=write_tasks(tmp_path))
    (tmp_path / "ties.jsonl").write_text(json.dumps(TIES[0]) + "\n{}\n")
    if dry_run:
        said = trainer("launch", "cpu", str(recipe), "--dry-run")
        assert said.code == 2
        told = said.err
    else:
        told = train(recipe, exit_code=2)
        assert (
            outcome(recipe)["last_attempt"]["reason"]
            if "last_attempt" in outcome(recipe)
            else outcome(recipe)["outcome"] == "refused"
        )
    says(paragraph(told[told.index("error:") :]), tmp_path / "ties.jsonl", "line 2", "item")


def test_a_corpus_without_held_out_data_cannot_have_tasks(tmp_path):
    """Only once it is open does a prepared folder say that it holds nothing out."""
    text = tmp_path / "text.txt"
    text.write_text("To be, or not to be: that is the question.\n" * 200)
    assert (
        trainer(
            "prepare",
            str(text),
            "--out",
            str(tmp_path / "corpus"),
            "--tokenizer",
            "bytes",
            "--validation-fraction",
            "0",
        ).code
        == 0
    )
    data = {"corpus": str(tmp_path / "corpus"), "train": [], "validation": [], "tokenizer": None}
    recipe = write_recipe(tmp_path, data=data, evaluation=write_tasks(tmp_path))
    line_of(train(recipe, exit_code=2), "evaluation.tasks", "held-out")


def test_more_held_out_sequences_than_there_are_is_told(tmp_path):
    line_of(
        train(write_recipe(tmp_path), "max_steps=5", "evaluation.num_sequences=99"),
        "evaluation.num_sequences",
        99,
        "12 sequences",
    )


def test_evaluations_that_cannot_be_written_down_are_shown_all_the_same(finished):
    path = finished.parent / "runs" / "tiny" / "evaluations.jsonl"
    path.unlink(missing_ok=True)
    path.mkdir()
    try:
        text = put(finished, "--tasks", "shakespeare_lines", "--limit", "5")
    finally:
        path.rmdir()
    line_of(text, path, "Is a directory")
    assert "shakespeare_lines      5" in text
