import json
from pathlib import Path

from tests.messages import says
from tests.unit.tools.bench.made import BF16, COMPILED, CURRENT, EMULATED, figures, steps
from trainer.tools.bench.choose import Missing
from trainer.tools.bench.judge import judge
from trainer.tools.bench.result import Result


def result(*measured, missing=()):
    return Result(
        name="mine",
        settings=["max_steps=9"],
        conditions={"processes": 2, "device": "NVIDIA H100"},
        date="2026-11-25T10:00:00+00:00",
        rounds=2,
        steps=4,
        total_tokens=8_640_000,
        measured=list(measured),
        missing=list(missing),
        judgement=judge(measured),
        seconds=100,
        stored_in=Path("runs/x.json"),
    )


def test_the_table_has_a_row_for_each_variant_and_each_that_is_missing():
    bf16 = figures(BF16, steps(1.0, mfu=0.4))
    found = result(
        bf16,
        figures(COMPILED, steps(0.5, mfu=0.8), reference=steps()),
        missing=[Missing("fp8 current", "there is no CUDA device")],
    )
    lines = found.text().splitlines()
    says(lines[0], "mine", "2 processes", "NVIDIA H100", "2 rounds", "4 steps", "1m 40s")
    assert lines[2].split() == [
        "variant",
        "step",
        "varied",
        "tokens/s",
        "to",
        "bf16",
        "MFU",
        "memory",
        "loss",
        "gap",
        "whole",
        "run",
    ]
    assert lines[3].split() == ["bf16", "1s", "0.0%", "1k", "0.50x", "40.0%", "-", "-", "2h", "24m"]
    assert lines[4].split() == ["bf16+compile", "0.5s", "0.0%", "2k", "1.00x", "80.0%", "-", "+0.00%", "1h", "12m"]
    says(lines[5], "fp8 current", "there is no CUDA device")
    says(found.text(), "runs/x.json", "precision.recipe: auto")
    assert found.text().endswith(found.judgement.sentence)


def test_what_is_not_known_is_told_and_what_runs_away_stands_out():
    text = result(figures(BF16, steps()), figures(CURRENT, steps(losses=[9.0] * 9), reference=steps())).text()
    assert "MFU: unknown" in text
    assert "memory: unknown" in text
    assert "+80.00% RUNS AWAY" in text
    assert "MFU of fp8" not in text


def test_a_machine_that_was_not_steady_is_told():
    assert "steady" not in result(figures(BF16, steps(1.0), steps(1.1))).text()
    shaky = result(figures(BF16, steps(1.0), steps(1.2)))
    assert not shaky.is_steady
    says(shaky.text(), "bf16", "18%")


def test_the_mfu_of_fp8_is_told_apart_from_bf16s():
    says(result(figures(BF16, steps(mfu=0.4)), figures(CURRENT, steps(mfu=0.3))).text(), "MFU of fp8", "peak")


def test_an_emulation_is_said_to_be_one():
    text = result(figures(BF16, steps()), figures(EMULATED, steps())).text()
    assert "fp8 emulation current" in text
    says(text, "not fp8")


def test_a_program_gets_the_same_as_plain_values():
    facts = json.loads(
        json.dumps(result(figures(BF16, steps(1.0)), figures(CURRENT, steps(0.8), reference=steps())).facts())
    )
    assert facts["recommended"] == "fp8 current"
    assert facts["gains"] == {"current": 0.25}
    assert facts["measured"][1]["gain"] == 0.25
    assert facts["measured"][0]["run_days"] == 0.1
    assert facts["conditions"]["device"] == "NVIDIA H100"
    assert facts["stored_in"] == "runs/x.json"


def test_without_a_bf16_to_compare_with_the_table_stands_all_the_same():
    found = result(figures(BF16, steps(losses=[None] * 9)), figures(CURRENT, steps()))
    assert found.facts()["measured"][1]["gain"] is None
    says(found.text(), "nothing")
