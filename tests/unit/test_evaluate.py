"""What `trainer eval` says of its results; the command itself is tested in tests/acceptance/test_tasks.py."""

import json
import math
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.messages import logged, says
from tests.small_checkpoints import manifest_of
from trainer import evaluate
from trainer.checkpoint.resume.select import Located
from trainer.config.schema import Config, DataConfig
from trainer.data.prepare import prepare
from trainer.errors import DataError
from trainer.evaluate import Evaluation, Loss
from trainer.evaluation.accuracy import TaskResult


def evaluation(passed_over=None, **changes):
    usual = {
        "task": "words",
        "num_items": 3,
        "acc": 0.0,
        "acc_stderr": None,
        "acc_norm": None,
        "acc_norm_stderr": None,
        "chance": None,
    }
    result = TaskResult(**{**usual, "perplexity": 9.5, "num_not_finite": 0, **changes})
    located = Located(Path("checkpoints/mine/step-00000010"), manifest_of(10), passed_over or {})
    return Evaluation(located, "no", [result], True)


def test_results_are_a_table_under_what_they_are_of():
    assert evaluation().text().splitlines()[0] == "mine, step 10, fp32"
    assert len(evaluation().text().splitlines()) == 3


def test_scores_that_are_no_numbers_are_told():
    said = evaluation(num_not_finite=2).text().splitlines()
    says(said[3], "words", "2 of 3", "not finite", "checkpoint")


@pytest.mark.parametrize("perplexity", [math.nan, math.inf])
def test_a_record_is_json_whatever_the_numbers_are(perplexity):
    (record,) = evaluation(perplexity=perplexity).records()
    assert (
        json.loads(json.dumps(record), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))["perplexity"]
        is None
    )
    assert (record["step"], record["task"], record["acc"]) == (10, "words", 0.0)


def test_the_records_that_are_printed_are_those_that_were_written_though_a_second_passed(monkeypatch):
    said = evaluation()
    written = said.records()
    monkeypatch.setattr(evaluate.time, "gmtime", lambda *_: time.struct_time((2030, 1, 1, 0, 0, 0, 1, 1, 0)))
    assert said.records() == written


def test_newer_checkpoints_that_were_passed_over_stand_in_the_table_and_in_the_records():
    passed_over = {"step-00000020": "optimizer.bin is missing"}
    said = evaluation(passed_over)
    says(said.text(), "step-00000020", "optimizer.bin", "step 10")
    assert [(record["step"], record["passed_over"]) for record in said.records()] == [(10, passed_over)]


def test_a_loss_stands_before_the_tasks_in_table_and_records():
    loss = Loss(data="mine", loss=math.inf, perplexity=math.inf, bits_per_byte=None, num_tokens=8)
    told = replace(evaluation(), loss=loss)
    assert [record["task"] for record in told.records()] == ["validation_loss", "words"]
    assert told.records()[0]["loss"] is None
    lines = told.text().splitlines()
    assert lines[1].split()[:2] == ["held-out", "text"]
    assert lines[2].split() == ["mine", "8", "inf", "inf", "-"]
    assert "diverged" in lines[-1]
    assert len(replace(told, results=[]).text().splitlines()) == 4


@pytest.fixture
def trained_without_held_out(tmp_path):
    """(config, manifest, folder) of a run whose corpus holds nothing out."""
    (tmp_path / "text.txt").write_text("All the world's a stage. " * 200)
    folder = tmp_path / "mine"
    prepare([str(tmp_path / "text.txt")], folder, "bytes", validation_fraction=0.0)
    manifest = manifest_of(10)
    identity = {**manifest.identity, "tokenizer": None, "sequence_length": 16}
    config = Config.model_construct(name="mine", data=DataConfig(corpus=str(folder)), sequence_length=16)
    return config, replace(manifest, identity=identity, vocab_size=257), folder


def test_the_loss_on_training_text_is_never_called_that_on_held_out_text(trained_without_held_out, caplog):
    config, manifest, folder = trained_without_held_out
    with pytest.raises(DataError, match="--data"):
        evaluate.held_out(config, manifest, None)
    assert not caplog.text
    found = evaluate.held_out(config, manifest, str(folder))
    assert found.num_sequences > 0
    logged(caplog, "100%")


def test_other_text_is_not_said_to_be_trained_on_and_training_data_that_is_gone_stops_nothing(
    trained_without_held_out, tmp_path, caplog
):
    config, manifest, folder = trained_without_held_out
    (tmp_path / "other.txt").write_text("They have their exits. " * 217)
    other = tmp_path / "other"
    prepare([str(tmp_path / "other.txt")], other, "bytes", validation_fraction=0.0)
    caplog.clear()
    assert evaluate.held_out(config, manifest, str(other)).num_sequences > 0
    folder.rename(tmp_path / "moved")
    assert evaluate.held_out(config, manifest, str(tmp_path / "moved")).num_sequences > 0
    assert not caplog.text
