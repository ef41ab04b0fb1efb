"""What a person and a program read of a comparison."""

import json

import pytest

from tests.messages import says
from tests.written_runs import compared, losses, write_run
from trainer.tools.compare.page import write_page
from trainer.tools.compare.show import differences, facts, text, to_json


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.files.project_folder", lambda: tmp_path)


@pytest.fixture
def worse(tmp_path):
    """A run, and one in another precision that is worse by 0.2 nats and twice as fast."""
    evaluations = {200: {"val_loss": 3.3, "bits_per_byte": 1.2, "lines/acc_norm": 0.5}}
    a = write_run(tmp_path, "plain", losses(), evaluations=evaluations)
    b = write_run(
        tmp_path,
        "fast",
        losses() + 0.2,
        evaluations=evaluations,
        precision="fp8",
        step_seconds=18.0,
        settings={"optimizer": {"lr": 0.002}},
    )
    return compared(a, b)


def test_the_table_has_what_one_looks_for(worse):
    rows = {name: cells for name, *cells in facts(worse.runs)}
    assert rows["precision"] == ["bf16", "fp8"]
    assert rows["processes"] == ["4", "4"]
    assert rows["steps"] == ["200", "200"]
    assert rows["tokens"] == ["200k", "200k"]
    assert rows["time of training"] == ["2h 0m", "1h 0m"]
    assert rows["tokens/s, median"] == ["27.8", "55.6"]
    assert rows["MFU, median"] == ["40.0 %", "40.0 %"]
    assert rows["outcome"] == ["finished", "finished"]
    ours = losses()[190:].mean()
    assert rows["training loss, last 5 %"] == [f"{ours:.4f}", f"{ours + 0.2:.4f}"]
    assert rows[f"time until {ours:.4f}"][1] == "unknown"
    assert rows[f"time until {ours:.4f}"][0].startswith("1h ")
    assert rows["validation loss, last"] == rows["validation loss, best"] == ["3.3000", "3.3000"]
    assert rows["bits per byte, last"] == ["1.2000", "1.2000"]
    assert rows["lines/acc_norm, last"] == ["0.5000", "0.5000"]


def test_what_is_unknown_of_all_has_no_row_and_full_precision_is_called_so(tmp_path):
    runs = compared(
        *(write_run(tmp_path, name, losses(), precision=kind) for name, kind in (("a", "no"), ("b", None)))
    ).runs
    rows = {name: cells for name, *cells in facts(runs)}
    assert rows["precision"] == ["fp32", "unknown"]
    assert "validation loss, best" not in rows


def test_a_speed_that_nobody_wrote_down_is_not_compared(tmp_path):
    runs = [write_run(tmp_path, name, losses(), step_seconds=float("nan")) for name in "ab"]
    assert "speed:" not in text(compared(*runs))


@pytest.mark.filterwarnings("error")
def test_a_run_without_a_finite_loss_is_shown_as_diverged(tmp_path):
    sound, broken = write_run(tmp_path, "sound", losses(20)), write_run(tmp_path, "broken", [float("nan")] * 20)
    for order in ((sound, broken), (broken, sound)):
        comparison = compared(*order)
        worse_or_better = "broken is worse" if order[0] is sound else "sound is better"
        verdict = ("broken diverged", "0 tokens", "sound", worse_or_better)
        for said in (text(comparison), write_page(comparison, tmp_path).read_text()):
            says(said, *verdict)
            says(said, "20 steps", "not finite")
        facts_told = json.loads(to_json(comparison))
        assert facts_told["pairs"][0]["verdict"] == ("worse" if order[0] is sound else "better")
        assert [run["has_diverged"] for run in facts_told["runs"]] == [run is broken for run in order]


def test_only_settings_that_differ_are_shown(worse):
    assert differences(worse.runs) == [("optimizer.lr", "0.001", "0.002")]


def test_the_text_ends_with_the_verdict(worse):
    said = text(worse)
    end = said.split("\n\n")[-1].splitlines()
    says(
        end[0],
        "fast is worse than plain",
        "0.2000 +-",
        "noise",
        "20 % of 200k tokens",
        "training loss",
        "validation loss",
    )
    says(end[1], "validation loss", "no difference", "+0.0000 +- 0.0000", "200k tokens")
    says(end[3], "noise", "standard error 0.0000", "same batches")
    says(end[4], "speed", "fast", "2.00 times", "plain", "55.6", "27.8")
    assert "training loss by tokens" in said
    assert said.count(" *\n") >= 7
    assert "training loss by time of training" in said


def test_every_verdict_is_a_sentence(tmp_path):
    base = write_run(tmp_path, "base", losses())
    runs = [
        write_run(tmp_path, "twin", losses()),
        write_run(tmp_path, "seed", losses(seed=3), seed=3),
        write_run(tmp_path, "better", losses() - 0.3),
        write_run(tmp_path, "short", losses()[:5]),
        write_run(tmp_path, "bytes", losses(), settings={"data": {"corpus": "poems"}}),
    ]
    said = [part.splitlines()[0] for part in text(compared(base, *runs)).split("\n\n")[-5:]]
    says(said[0], "twin", "base", "last bit", "200k tokens")
    says(said[1], "seed", "base", "no difference", "20 % of 200k tokens")
    says(said[2], "better is better than base", "0.3000 +-")
    says(said[3], "short", "base", "cannot be judged", "steps")
    says(said[4], "bytes", "base", "cannot be judged")


def test_a_run_that_diverged_is_called_that_before_its_losses_are(tmp_path):
    values = losses()
    values[100:] = float("nan")
    base, broken = write_run(tmp_path, "base", losses()), write_run(tmp_path, "broken", values)
    said = text(compared(base, broken)).split("\n\n")[-1].splitlines()
    says(said[0], "broken diverged", "100k tokens", "base", "broken is worse")
    says(said[1], "training loss", "no difference", "+0.0000 +- 0.0000", "20 % of 100k tokens")


def test_the_source_of_the_noise_is_said(tmp_path):
    base, *seeds = (write_run(tmp_path, f"seed{seed}", losses(seed=seed), seed=seed) for seed in (1, 2, 3))
    other = write_run(tmp_path, "other", losses(seed=4), seed=4, settings={"optimizer": {"lr": 0.1}})
    says(text(compared(base, other)), "the default", "seeds")
    says(text(compared(base, *seeds)), "measured", "seed1, seed2, seed3", "the default")


def test_json_has_the_same_for_a_program(worse):
    told = json.loads(to_json(worse))
    assert [run["name"] for run in told["runs"]] == ["plain", "fast"]
    assert told["runs"][1]["precision"] == "fp8"
    assert told["runs"][0]["evaluation"] == {"val_loss": 3.3, "bits_per_byte": 1.2, "lines/acc_norm": 0.5}
    assert told["settings"] == {"optimizer.lr": [0.001, 0.002]}
    (pair,) = told["pairs"]
    assert pair["verdict"] == "mixed"
    assert pair["judged"]["loss"]["verdict"] == "worse"
    assert pair["judged"]["loss"]["gap"] == pytest.approx(0.2)
    assert pair["same_batches"]
    assert pair["curve"][-1]["tokens"] == pytest.approx(200_000)
    assert pair["curve"][-1]["gap"] == pytest.approx(0.2)
    assert pair["sentences"][0] in text(worse)
