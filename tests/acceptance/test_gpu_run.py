"""The script that shows fp8 on a GPU, tried on a CPU: every part with a small model and the stand-in, and each bar seen missed."""

import json
import subprocess
from dataclasses import replace

import pytest
import torch

from tests import emulation
from tests.gpu import show, speed, stage, training
from tests.gpu.shown import NOT_YET, RESULTS, Bar, Shown, passage
from tests.gpu.stage import EMULATED, Size
from tests.launching import PROJECT

SMALL = Size(32, 2, 16, 2, 4)
STAGE = replace(
    EMULATED, names=("current", "delayed"), vocab_size=64, run_size=SMALL, gap_size=replace(SMALL, layers=3), gap_steps=4, kill_steps=12,
    speed_sizes=(SMALL,),
)  # fmt: skip


@pytest.fixture
def backend():
    emulation.install()
    yield
    emulation.uninstall()


@pytest.fixture
def hopper(monkeypatch):
    """As if only these two were asked of the GPU: block scaling does not fit the small model."""
    monkeypatch.setattr(training, "HOPPER", STAGE.names)


def figures(shown):
    return {bar.what: bar for bar in shown.bars}


def test_the_share_is_of_what_the_run_says_of_itself_and_too_small_a_one_is_missed(backend, hopper, monkeypatch):
    stage_ = replace(STAGE, names=("current",))
    monkeypatch.setattr(training, "HOPPER", ("current",))
    shown = training.share(stage_)
    assert shown.passed and figures(shown)["current: linear arithmetic of the blocks in fp8"].figure == "100.0%"
    assert shown.facts["current"]["label"] == "fp8 emulation"
    monkeypatch.setattr(training, "WHOLE", {"bf16_first_blocks": 1, "bf16_last_blocks": 0})
    assert not training.share(stage_).passed


def test_a_recipe_of_hoppers_that_cannot_be_had_is_a_bar_that_is_missed(backend):
    there, bars = training.wanted(replace(STAGE, names=("current", "block")), SMALL)
    assert there == ["current"] and [(bar.what, bar.passed) for bar in bars] == [("block", False)] and "multiples of 128" in bars[0].figure


def test_gaps_are_relative_and_one_seed_too_far_is_missed(backend, hopper, monkeypatch):
    assert training.gaps_of({0: (2.02, 3.0)}, {0: (2.0, 3.0)})[0] == pytest.approx((0.01, 0.0))
    shown = training.gap(replace(STAGE, names=("current",)))
    assert set(shown.facts["losses"]) == {"bf16", "current"} and shown.facts["losses"]["current"] != shown.facts["losses"]["bf16"]
    monkeypatch.setattr(training, "MOST_GAP", 0.0)
    assert not training.gap(replace(STAGE, names=("current",))).passed


def test_a_kill_is_survived_by_stateless_recipes_and_by_delayed_it_is_told(backend, hopper):
    shown = training.resume(STAGE)
    assert shown.passed and shown.facts["current"]["equal_files"] and shown.facts["current"]["equal_losses"]
    assert "resume exact: " in figures(shown)["current: killed and resumed"].figure
    assert not shown.facts["delayed"]["equal_files"], "if this is exact, say so everywhere"
    assert figures(shown)["delayed: killed and resumed"].bar == "none: it has a state"


def test_a_resume_that_differs_is_missed(backend, hopper, monkeypatch):
    monkeypatch.setattr(training, "final_bytes", lambda recipe, step: {"model.safetensors": str(recipe).encode()})
    shown = training.resume(replace(STAGE, names=("current",)))
    assert not shown.passed and "weights and moments DIFFER" in figures(shown)["current: killed and resumed"].figure


def test_a_run_changes_its_precision_and_keeps_its_files(backend, hopper):
    shown = training.switch(STAGE)
    assert shown.passed and shown.facts["labels"] == ["fp8 emulation", "bf16", "fp8 emulation"] and len(shown.bars) == 4


def test_every_way_is_timed_and_what_cannot_be_had_is_named(backend):
    shown = speed.speed(replace(STAGE, names=("current", "block"), compiled=False))
    said = figures(shown)
    assert set(said) == {"width 32, bf16", "width 32, current", "width 32, block"}
    assert "(1.00x)" in said["width 32, bf16"].figure and said["width 32, block"].figure.startswith("n/a: no layer fits")
    medians = shown.facts["32"]["medians"]
    assert all(medians[way][what] > 0 for way in ("bf16", "current") for what in ("linears", "step"))


def test_ratios_are_to_the_faster_of_plain_and_compiled_bf16():
    medians = {
        way: {"linears": seconds, "step": 2 * seconds, "bytes": 0} for way, seconds in (("bf16", 0.004), ("bf16 compiled", 0.002), ("current", 0.001))
    }
    bars = speed.bars_of(SMALL, medians, {}, dict.fromkeys(medians))
    assert ["0.50x" in bars[0].figure, "1.00x" in bars[1].figure, "2.00x" in bars[2].figure] == [True] * 3


def test_the_probe_says_what_is_decided_and_a_fallback_is_missed(backend):
    assert show.probe(replace(EMULATED, names=("current",))).passed
    emulation.uninstall()
    assert not show.probe(EMULATED).passed


# The command


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_what_it_needs_and_writes_nothing(tmp_path, capsys):
    assert show.main(["probe", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: there is no CUDA device") and said.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("words", "why"), [(["--emulate", "probe"], "needs --out"), (["prob"], "no part is called prob")])
def test_a_mistake_is_told(words, why, capsys):
    with pytest.raises(SystemExit) as caught:
        show.main(words)
    assert caught.value.code == 2 and why in capsys.readouterr().err


def test_the_script_plays_parts_in_processes_of_their_own_and_tells_of_one_that_fails(tmp_path):
    done = subprocess.run(
        [PROJECT / "tests" / "gpu" / "run", "--emulate", "--out", tmp_path, "probe", "stall"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().split("\n")[-2:] == ["  probe  shown", "  stall  shown"]
    assert {path.name: json.loads(path.read_text())["emulated"] for path in tmp_path.iterdir()} == {"gpu_probe.json": True, "gpu_stall.json": True}


def test_a_missed_bar_and_a_part_that_dies_end_with_1(tmp_path, monkeypatch, capsys):
    missed = Shown("probe", [Bar("current", "bf16", "fp8", passed=False)])
    monkeypatch.setitem(show.PARTS, "probe", show.PARTS["probe"]._replace(play=lambda stage: missed))
    monkeypatch.setattr(stage, "missing", lambda: None)
    assert show.main(["probe", "--out", str(tmp_path)]) == 1 and "NO" in capsys.readouterr().out
    monkeypatch.setattr(show.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, -9 if "gap" in command else 0))
    assert show.main(["probe", "gap", "--out", str(tmp_path)]) == 1
    assert "died with exit code -9" in capsys.readouterr().out


# README


def test_readme_states_what_was_measured_and_nothing_else():
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    assert f"<!-- GPU -->\n{passage(RESULTS, list(show.PARTS))}\n<!-- /GPU -->" in readme


def test_the_passage_has_figures_of_a_gpu_only_and_names_what_is_missing(tmp_path):
    assert passage(tmp_path, ["probe", "gap"]) == NOT_YET
    shown = Shown("gap", [Bar("current: loss", "+0.1%", "< 0.5 %"), Bar("block: loss", "+0.9%", "< 0.5 %", passed=False)])
    shown.write(tmp_path, emulated=True, seconds=1.0)
    assert passage(tmp_path, ["probe", "gap"]) == NOT_YET
    shown.write(tmp_path, emulated=False, seconds=1.0)
    said = passage(tmp_path, ["probe", "gap"])
    assert "| gap | block: loss | +0.9% | < 0.5 % (NOT met) |" in said and said.endswith("Not yet measured: probe.")
