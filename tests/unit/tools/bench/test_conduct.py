"""The launches of a measurement: their order, what is made of one that fails, what is left behind. They are scripts that write a curve."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from tests.launching import PROJECT
from tests.messages import names, refuses, says
from trainer.config.cluster import read_cluster
from trainer.config.load import load
from trainer.ending.outcome_file import write_outcome
from trainer.errors import ConfigError, LaunchError
from trainer.precision.decide import Decision
from trainer.precision.measured import find
from trainer.precision.recipes import RECIPES
from trainer.tools.bench import conduct
from trainer.tools.bench.conduct import bench
from trainer.tools.bench.survey import Survey

CLUSTER = str(PROJECT / "accelerate_configs" / "1gpu_bf16.yaml")
CONDITIONS = {"device": "NVIDIA H100", "processes": 1}
TAKEN = """
import json, sys, time
from pathlib import Path
folder, label, compiled, seconds, forever = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]), float(sys.argv[4]), json.loads(sys.argv[5])
folder.mkdir(parents=True, exist_ok=True)
(folder / "journal.jsonl").write_text(json.dumps({"event": "start", "time": "", "precision": label, "compiled": compiled}) + "\\n")
with open(folder / "metrics.jsonl", "w") as curve:
    for step in range(1, 8):
        print(json.dumps({"step": step, "loss": 5.0, "step_seconds": seconds, "memory/peak_bytes": 1e9 * step}), file=curve, flush=True)
if forever:
    time.sleep(60)
"""
"""A launch that takes its steps at once and then goes on, as a run does, until it is ended."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Launches that last a moment are looked at more often."""
    monkeypatch.setattr(conduct, "POLL_SECONDS", 0.005)


@dataclass
class Launch:
    folder: Path
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)


def config(*overrides):
    return load("shakespeare", list(overrides)).config


def seen(*, has=("current", "block"), bf16="bf16"):
    decisions = {"bf16": Decision("bf16", bf16, "as the cluster file asks")}
    decisions |= {
        name: Decision("fp8", "fp8" if name in has else "bf16", "GPU 0 is too old", recipe=name) for name in RECIPES
    }
    return lambda config, cluster: Survey(decisions, CONDITIONS)


class Machine:
    """Plans launches whose steps take so long, and remembers them; `breaks` is the variant whose launch fails, with this outcome."""

    seconds = {"bf16": 1.0, "bf16-compile": 0.5, "fp8-current": 0.4, "fp8-block": 0.6}
    goes_on = "true"

    def __init__(self, breaks=None, outcome="refused"):
        self.breaks, self.outcome, self.launched, self.label = breaks, outcome, [], {}

    def plan(self, cluster_file, words):
        values = dict(word.split("=", 1) for word in words)
        name, cluster = values["name"].rsplit("-", 1)[0], yaml.safe_load(cluster_file.read_text())
        self.launched.append((values["name"], cluster["mixed_precision"], "dynamo_config" in cluster))
        folder = Path(values["runs_folder"]) / values["name"]
        if name == self.breaks:
            if self.outcome:
                write_outcome(folder, self.outcome, step=0, reason="precision.required is true and fp8 cannot be had")
            return Launch(folder, [sys.executable, "-c", "print('last words'); raise SystemExit(1)"])
        label = self.label.get(name, cluster["mixed_precision"])
        arguments = [str(folder), label, json.dumps("dynamo_config" in cluster), str(self.seconds[name]), self.goes_on]
        return Launch(folder, [sys.executable, "-c", TAKEN, *arguments])


def measured_on(machine, *, survey=None, said=None, steps=2):
    lines = said if said is not None else []
    return bench(config(), read_cluster(CLUSTER), machine.plan, steps=steps, survey=survey or seen(), say=lines.append)


def test_variants_take_turns_under_their_own_cluster_files_and_the_result_is_stored(project):
    machine, said = Machine(), []
    result = measured_on(machine, said=said)
    assert machine.launched == [
        (f"{name}-{number}", precision, compiled)
        for number in (1, 2)
        for name, precision, compiled in (
            ("bf16", "bf16", False),
            ("bf16-compile", "bf16", True),
            ("fp8-current", "fp8", False),
            ("fp8-block", "fp8", False),
        )
    ]
    assert said[1:3] == ["round 1 of 2: bf16", "round 1 of 2: bf16+compile"]
    assert len(said) == 9
    assert result.judgement.recommended == "fp8 current"
    assert result.judgement.gains == {
        "current": pytest.approx(0.25),
        "block": pytest.approx(-1 / 6),
    }
    assert [each.peak_bytes for each in result.measured] == [7e9] * 4
    assert "fp8 mxfp8" in [each.name for each in result.missing]
    assert find(project / "runs", CONDITIONS).gains == result.judgement.gains
    assert json.loads(result.stored_in.read_text())["conditions"] == CONDITIONS
    assert sorted(path.name for path in project.glob("*/*")) == [".measured"], "nothing else is left"


def test_what_a_machine_that_was_not_steady_gave_is_not_kept(project):
    machine = Machine()
    plan = machine.plan

    def slower_in_the_second_round(cluster_file, words):
        machine.seconds = dict.fromkeys(machine.seconds, 1.0 if "name=bf16-1" in words else 1.2)
        return plan(cluster_file, words)

    machine.plan = slower_in_the_second_round
    result = measured_on(machine)
    assert result.stored_in is None
    assert find(project / "runs", CONDITIONS) is None
    says(result.text(), "steady")


def test_a_variant_whose_launch_fails_is_told_with_its_reason_and_has_no_second_turn(project):
    machine = Machine(breaks="fp8-current")
    result = measured_on(machine)
    assert [name for name, *_ in machine.launched].count("fp8-current-2") == 0
    assert [each.variant.name for each in result.measured] == [
        "bf16",
        "bf16+compile",
        "fp8 block",
    ]
    assert result.judgement.gains.keys() == {"block"}
    [failed] = [each for each in result.missing if each.reason.startswith("failed")]
    says(failed.reason, "refused", "precision.required")


@pytest.mark.parametrize(("label", "words"), [("bf16", "bf16"), ("fp8 emulation", "fp8 emulation")])
def test_a_launch_that_computed_in_something_else_does_not_count(project, label, words):
    machine = Machine()
    machine.label["fp8-current"] = label
    result = measured_on(machine)
    assert any(names(each.reason, "failed", words) for each in result.missing)
    assert "current" not in result.judgement.gains


def test_a_launch_that_was_not_compiled_does_not_count(project, monkeypatch):
    monkeypatch.setattr(
        conduct,
        "write_variant",
        lambda cluster, path, *, precision, compiled: path.write_text(f"mixed_precision: {precision}"),
    )
    result = measured_on(Machine())
    assert any(names(each.reason, "failed", "torch.compile") for each in result.missing)


@pytest.mark.parametrize(
    ("outcome", "code", "words"),
    [("refused", 2, ["refused"]), ("failed", 1, ["failed"]), (None, 1, ["exit code 1", "last words"])],
)
def test_a_run_that_does_not_run_in_bf16_ends_it_and_what_it_printed_is_kept(project, outcome, code, words):
    machine = Machine("bf16", outcome)
    with refuses(LaunchError, "bf16", *words) as caught:
        measured_on(machine)
    assert caught.value.exit_code == code
    assert len(machine.launched) == 1
    [log] = (project / "runs").glob(".bench-*/bf16-1.log")
    assert str(log) in str(caught.value)
    assert log.read_text() == "last words\n"


def test_a_launch_that_ends_by_itself_before_its_steps_is_a_failure(project):
    machine = Machine()
    machine.goes_on = "false"
    with refuses(LaunchError, "exit code 0"):
        measured_on(machine, steps=100)


def test_a_machine_without_bf16_is_refused_with_its_reason(project):
    with refuses(LaunchError, "precision: fp32", "bf16"):
        measured_on(Machine(), survey=seen(bf16="no"))


def test_a_cluster_of_several_machines_is_refused(project, tmp_path):
    path = tmp_path / "two.yaml"
    path.write_text("distributed_type: MULTI_GPU\nnum_machines: 2\nnum_processes: 8\nmixed_precision: bf16\n")
    with refuses(ConfigError, str(path), 2, "bench precision"):
        bench(config(), read_cluster(str(path)), Machine().plan, steps=2, survey=seen(), say=lambda line: None)


def test_what_a_killed_measurement_left_is_swept_by_the_next(project):
    for kind in ("runs", "checkpoints"):
        (project / kind / ".bench-dead" / "bf16-1").mkdir(parents=True)
    (project / "runs" / ".bench-dead" / ".lock").touch()
    said = []
    measured_on(Machine(), said=said)
    assert any(names(line, "removed", ".bench-dead") for line in said)
    assert not list(project.glob("*/.bench-*"))
