"""Answers become rows, a foreseen launch, and an exit code."""

import json
from dataclasses import asdict, replace

import pytest

from tests.messages import refuses, says
from tests.unit.tools.doctor.machines import A100, CPU, H100, TE, answers, diagnosis, machine
from trainer.config.cluster import read_cluster
from trainer.config.load import load
from trainer.errors import ConfigError
from trainer.precision.decide import NO_DEVICE, Decision
from trainer.tools.doctor import diagnosis as room
from trainer.tools.doctor.diagnosis import foresee

NOTHING_LEFT = {"left_uncompiled": None}


def possible(found):
    return {row.asked: row.possible for row in found.rows}


def test_a_hopper_gpu_has_three_recipes(monkeypatch):
    found = diagnosis(monkeypatch, machine(H100), answers(H100, num_gpus=1))
    assert possible(found) == {
        "no": "yes",
        "bf16": "yes",
        "fp16": "yes",
        "fp8 current": "yes",
        "fp8 delayed": "yes",
        "fp8 block": "yes",
        "fp8 mxfp8": "no",
        "fp8 nvfp4": "no",
    }
    reasons = {row.asked: row.reason for row in found.rows}
    assert reasons["bf16"] == ""
    assert "came within 4.1% of fp32" in reasons["fp8 current"]
    assert "needs 10.0" in reasons["fp8 mxfp8"]
    assert (found.fp8, found.lacks_only_the_backend, found.exit_code, found.fits) == (
        "fp8 current",
        False,
        0,
        "1gpu_bf16",
    )


@pytest.mark.parametrize(
    ("facts", "backend", "lacks"),
    [(H100, None, True), (H100, TE, False), (A100, None, False), (A100, TE, False), (CPU, None, False)],
)
def test_an_installation_is_what_fp8_lacks_only_where_the_gpu_has_it(monkeypatch, facts, backend, lacks):
    found = diagnosis(monkeypatch, machine(facts), answers(facts, backend=backend, num_gpus=1))
    assert found.lacks_only_the_backend is lacks


def test_what_broke_when_it_was_tried_stands_in_its_row(monkeypatch):
    words = "the process that tried it was killed by SIGSEGV"
    found = diagnosis(monkeypatch, machine(H100), {**answers(H100, num_gpus=1), "fp8 block": {"problem": words}})
    row = next(row for row in found.rows if row.asked == "fp8 block")
    assert (row.possible, row.reason, row.decision) == ("no", words, None)
    assert possible(found)["fp8 current"] == "yes"


def test_an_emulation_is_no_yes(monkeypatch):
    facts = replace(CPU, emulated=True)
    found = diagnosis(monkeypatch, machine(), answers(facts, backend="the tests' emulation"))
    assert possible(found)["fp8 current"] == "emulated"
    assert found.fp8 is None
    assert "this is NOT fp8" in found.rows[3].reason


def test_a_diagnosis_is_plain_data(monkeypatch):
    found = diagnosis(monkeypatch, machine(H100), answers(H100, num_gpus=1))
    content = json.loads(json.dumps(found.as_json()))
    assert content["machine"]["gpus"] == [{"name": "NVIDIA H100", "memory_bytes": 85_520_809_984, "capability": [9, 0]}]
    assert [row["possible"] for row in content["precisions"]].count("yes") == 6
    assert content["launch"] is None
    assert content["precisions"][3]["probe_error"] == 0.041
    assert content["precisions"][3]["decision"]["mode"] == "fp8"


# A launch


def launch_of(monkeypatch, *overrides, answer, cluster="1gpu_fp8", num_gpus=1):
    """What would come of a launch whose process gives this answer."""
    monkeypatch.setattr("trainer.config.cluster.count_gpus", lambda: num_gpus)
    asked = []

    def ask(questions, what, environment):
        asked.append((questions, what, environment))
        return dict.fromkeys(questions, answer)

    monkeypatch.setattr(room, "ask", ask)
    config = load("llama-1b", list(overrides)).config
    launch = foresee(read_cluster(cluster), "llama-1b", list(overrides), config, {"OF": "the launch"})
    assert not asked or (asked[0][1]["recipe"], asked[0][1]["overrides"], asked[0][2]) == (
        "llama-1b",
        list(overrides),
        {"OF": "the launch"},
    )
    return launch


GIVEN = {"decision": asdict(Decision("fp8", "fp8", "current scaling", recipe="current")), **NOTHING_LEFT}
FALLBACK = {
    "decision": asdict(Decision("fp8", "bf16", NO_DEVICE, recipe="current", title="current scaling, hybrid")),
    **NOTHING_LEFT,
}


def test_a_launch_in_what_was_asked_is_one(monkeypatch):
    launch = launch_of(monkeypatch, answer={**GIVEN, "left_uncompiled": "torch.compile is left out: why"})
    assert launch.is_as_asked
    assert launch.refused is None
    assert launch.remarks == ("torch.compile is left out: why",)
    assert json.loads(json.dumps(launch.as_json()))["decision"]["sentence"] == launch.decision.sentence


def test_a_fallback_is_not_what_was_asked(monkeypatch):
    launch = launch_of(monkeypatch, answer=FALLBACK)
    assert launch.refused is None
    assert not launch.is_as_asked
    assert launch.decision.mode == "bf16"
    found = replace(diagnosis(monkeypatch, machine(), answers(CPU)), launch=launch)
    assert found.exit_code == 1
    assert replace(found, launch=None).exit_code == 0


def test_a_fallback_that_is_refused_is_told_in_the_runs_words(monkeypatch):
    launch = launch_of(monkeypatch, "precision.required=true", answer=FALLBACK)
    says(launch.refused, "precision.required", "fp8", "current scaling, hybrid", NO_DEVICE.split(",")[0])
    assert launch.decision is not None
    assert not launch.is_as_asked


def test_too_few_gpus_are_told_without_trying(monkeypatch):
    launch = launch_of(monkeypatch, answer=None, cluster="4gpu_fp8", num_gpus=1)
    says(launch.refused, "4gpu_fp8", "4 GPUs", 1, "1gpu_fp8", "num_processes")
    launch = launch_of(monkeypatch, answer=None, cluster="1gpu_fp8", num_gpus=0)
    says(launch.refused, "1gpu_fp8", "1 GPU", 0, "cpu")


def test_what_the_machine_lacks_refuses_a_launch_and_a_mistake_ends_the_doctor(monkeypatch):
    assert launch_of(monkeypatch, answer={"problem": "it was killed by SIGSEGV"}).refused == "it was killed by SIGSEGV"
    with refuses(ConfigError, "model.config"):
        launch_of(monkeypatch, answer={"mistake": "model.config is refused"})


def test_settings_without_effect_are_told_with_a_launch(monkeypatch):
    answer = {"decision": asdict(Decision("bf16", "bf16", "as the cluster file asks")), **NOTHING_LEFT}
    launch = launch_of(monkeypatch, "precision.recipe=block", answer=answer, cluster="1gpu_bf16")
    assert launch.is_as_asked
    assert launch.remarks[0].startswith("precision.recipe: without effect")
