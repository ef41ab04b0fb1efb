"""A run in fp8 evaluates, samples and is looked into as one in bf16 is, bit for bit: with weights that stand still, the two must say the same."""

import json
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest

from tests import emulation
from tests.commands import trainer
from tests.events import events_of
from tests.launching import TINY_GPT2, TINY_LLAMA, Started, records, steps, write_recipe
from trainer import files

STILL = {"optimizer": {"lr": 1e-30, "weight_decay": 0.0}, "schedule": {"warmup_steps": 0}}
"""No weight but a zero is changed by a step, and a zero by nothing that bf16 could add to anything."""

EVERYTHING = {
    "evaluation": {
        "every_steps": 2,
        "tasks": ["shakespeare_lines"],
        "task_items": 8,
        "sample_tokens": 12,
        "sample_prompts": ["To be", "O"],
    },
    "metrics": {"detail_every_steps": 2, "histogram_every_steps": 2},
}


class Pair(NamedTuple):
    """One recipe trained in fp8 and in bf16."""

    fp8: Path
    bf16: Path


@pytest.fixture(
    scope="module", params=[(TINY_GPT2, "delayed", 1), (TINY_LLAMA, "current", 2)], ids=["gpt2", "llama on two ranks"]
)
def pair(request, tmp_path_factory) -> Pair:
    model, recipe, num_processes = request.param
    precision = {
        "recipe": recipe,
        "bf16_first_blocks": 0,
        "bf16_last_blocks": 0,
        "statistics_every_steps": 1,
        "shadow_every_steps": 1,
    }
    made = []
    for mode in Pair._fields:
        folder = tmp_path_factory.mktemp(mode)
        made.append(
            write_recipe(
                folder,
                model={"config": model},
                precision=precision,
                max_steps=4,
                checkpoint={"every_steps": 4},
                **STILL,
                **EVERYTHING,
            )
        )
        text = emulation.train(made[-1], precision=mode, num_processes=num_processes)
        assert ("precision: fp8 emulation" in text) == (mode == "fp8")
    return Pair(*made)


def evaluations(recipe):
    return [{**record, "seconds": None} for record in records(recipe) if "val_loss" in record]


def samples(recipe):
    return [event.tensor_proto.string_val[0] for event in events_of(recipe).Tensors("samples/text_summary")]


def test_validation_loss_and_tasks_are_bf16s(pair):
    assert len(evaluations(pair.fp8)) == 2
    assert evaluations(pair.fp8) == evaluations(pair.bf16)
    assert "shakespeare_lines/acc" in evaluations(pair.fp8)[0]
    assert steps(pair.fp8)[0]["loss"] != steps(pair.bf16)[0]["loss"], "and training is not"


def test_samples_are_bf16s(pair):
    assert len(samples(pair.fp8)) == 2
    assert samples(pair.fp8) == samples(pair.bf16)


def test_evaluating_in_between_leaves_the_comparison_with_bf16_as_it_is(pair):
    compared = [record["precision/loss_gap"] for record in steps(pair.fp8)]
    assert len(compared) == 4
    assert all(0.0 < abs(gap) < 0.01 for gap in compared)


def test_probes_and_histograms_find_the_same_layers(pair):
    numbers = [
        {tag: value for tag, value in steps(recipe)[1].items() if tag.split("/")[0] in ("grad_norm", "param_norm")}
        for recipe in pair
    ]
    assert "grad_norm/block_01" in numbers[0]
    assert numbers[0] == pytest.approx(numbers[1], rel=0.1)
    drawn = [
        {tag: len(events_of(recipe).Histograms(tag)) for tag in events_of(recipe).Tags()["histograms"]}
        for recipe in pair
    ]
    assert drawn[0] == drawn[1]
    assert set(drawn[0].values()) == {2}
    assert any(tag.startswith("gradients/") for tag in drawn[0])


def test_the_commands_read_such_a_run_as_any_other(pair):
    words = ("--tasks", "shakespeare_lines", "--limit", "8", "--json")
    told = Started(
        pair.fp8.parent / "runs" / "tiny", words, 1, emulation.install, "eval", {"ACCELERATE_MIXED_PRECISION": "fp8"}
    )
    assert told.wait() == 0, told.text()
    text = told.text()
    (record,) = json.loads(text[text.index("[\n") :])
    assert record["precision"] == "bf16"
    assert record["acc"] == evaluations(pair.fp8)[-1]["shakespeare_lines/acc"]
    written = [
        trainer("generate", str(recipe.parent / "runs" / "tiny"), "--prompt", "To be", "--temperature", "0")
        for recipe in pair
    ]
    assert written[0].code == 0
    assert written[0].out.startswith("To be")
    assert written[0].out == written[1].out


def test_compare_tells_the_two_apart_by_their_precision(pair):
    with mock.patch.object(files, "project_folder", lambda: pair.fp8.parent):
        done = trainer("compare", *(str(recipe.parent / "runs" / "tiny") for recipe in pair), "--json")
    assert [run["precision"] for run in json.loads(done.out)["runs"]] == ["fp8 emulation", "bf16"]
