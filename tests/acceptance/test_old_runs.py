"""What an earlier version wrote keeps working: a run of commit 6240149, before checkpoint/ became packages and settings were renamed.

tests/fixtures/run_before_the_packages.tar.xz holds its folder: a run that was interrupted at step 13 of 24, its checkpoints of steps 8
(best) and 13 (latest), a copy of step 10 in its second place, its recipe in that version's words, and straight/metrics.jsonl: the curve
of the same run that was never interrupted.
"""

import json
import tarfile
from pathlib import Path

import pytest

from tests.commands import trainer
from tests.events import events_of
from tests.launching import outcome, steps, train
from trainer.journal import read_events

FIXTURE = Path(__file__).parents[1] / "fixtures" / "run_before_the_packages.tar.xz"
PLACE = "/home/someone/pretraining"
"""Where the run was made."""


@pytest.fixture
def recipe(tmp_path) -> Path:
    """The old run's recipe, beside what it left; paths in it are this folder's."""
    with tarfile.open(FIXTURE) as file:
        file.extractall(tmp_path, filter="data")
    path = tmp_path / "tiny.yaml"
    path.write_text(path.read_text().replace(PLACE, str(tmp_path)))
    return path


def typed(*words: object) -> str:
    """What a command that must succeed prints."""
    said = trainer(*map(str, words))
    assert said.code == 0, said.err
    return said.out


def steps_listed(folder: Path) -> set[int]:
    return {json.loads(line)["step"] for line in typed("checkpoints", "ls", folder, "--json").splitlines()}


def test_its_checkpoints_are_listed_verified_copied_and_exported(recipe, tmp_path):
    here, there = tmp_path / "checkpoints" / "tiny", tmp_path / "mirror" / "tiny"
    assert steps_listed(here) == {8, 13}
    assert steps_listed(there) == {10}
    typed("checkpoints", "verify", here)
    typed("checkpoints", "fetch", there, "10", "--to", tmp_path / "fetched")
    assert steps_listed(tmp_path / "fetched") == {10}
    typed("export", here, "--out", tmp_path / "exported")
    assert (tmp_path / "exported" / "model.safetensors").is_file()
    assert "13" in typed("report", tmp_path / "runs" / "tiny")


def test_it_is_resumed_and_goes_on_as_the_run_that_was_never_interrupted(recipe, tmp_path):
    straight = [json.loads(line) for line in (tmp_path / "straight" / "metrics.jsonl").read_text().splitlines()]
    straight = [record for record in straight if "loss" in record]
    before = {tag: events_of(recipe).Scalars(tag) for tag in events_of(recipe).Tags()["scalars"]}
    train(recipe)
    assert outcome(recipe)["outcome"] == "finished"
    assert [event["step"] for event in read_events(tmp_path / "runs" / "tiny") if event["event"] == "resume"] == [13]
    assert [record["step"] for record in steps(recipe)] == list(range(1, 25))
    assert [record["data_digest"] for record in steps(recipe)] == [record["data_digest"] for record in straight]
    # To the bit on the processor where it was made; other processors sum in another order.
    assert [record["loss"] for record in steps(recipe)] == pytest.approx([r["loss"] for r in straight], rel=1e-4)
    drawn = events_of(recipe)
    assert [event.step for event in drawn.Scalars("loss/train")] == list(range(1, 25))
    for tag, events in before.items():
        assert [event.step for event in drawn.Scalars(tag)][: len(events)] == [event.step for event in events], tag


def test_it_is_compared_with_a_run_of_today(recipe, tmp_path):
    today = tmp_path / "today.yaml"
    today.write_text(recipe.read_text().replace("name: tiny", "name: today"))
    train(today)
    compared = json.loads(typed("compare", tmp_path / "runs" / "tiny", tmp_path / "runs" / "today", "--json"))
    assert [run["name"] for run in compared["runs"]] == ["tiny", "today"]
