"""metrics.jsonl, read in one pass into bins of tokens."""

import json

import numpy as np
import pytest

from tests.written_runs import STEP_TOKENS, losses, write_run
from trainer.metrics import binned as curves
from trainer.metrics.binned import NUM_BINS, Evaluation, last_tokens, read_curve
from trainer.metrics.index import CurveIndex


def read(folder):
    return read_curve(folder, last_tokens(folder) / NUM_BINS)


def test_a_short_run_has_a_bin_for_each_step(tmp_path):
    values = losses()
    curve = read(write_run(tmp_path, "a", values))
    assert curve.num_steps == 200
    assert curve.last_tokens == 200_000
    assert curve.counts.max() == 1
    filled = curve.counts > 0
    assert curve.mean("loss")[filled].tolist() == values.tolist()
    assert curve.tokens[filled].tolist() == [1000 * step for step in range(1, 201)]
    assert curve.hours[filled] == pytest.approx(np.arange(1, 201) / 100)
    assert curve.seconds == pytest.approx(7200)
    assert curve.medians == {"tokens_per_second": pytest.approx(1000 / 36), "mfu": pytest.approx(0.4)}


def test_a_long_run_has_the_mean_the_least_and_the_greatest_of_each_bin(tmp_path):
    values = losses(2 * NUM_BINS)
    curve = read(write_run(tmp_path, "a", values))
    pairs = values.reshape(-1, 2)
    assert (curve.counts == 2).all()
    assert curve.mean("loss") == pytest.approx(pairs.mean(1))
    assert (curve.lowest == pairs.min(1)).all()
    assert (curve.highest == pairs.max(1)).all()


def test_bins_do_not_depend_on_how_the_file_is_cut_into_chunks(tmp_path, monkeypatch):
    folder = write_run(tmp_path, "a", losses(), evaluations={100: {"val_loss": 3.0}})
    whole = read(folder)
    monkeypatch.setattr(curves, "CHUNK_BYTES", 500)
    monkeypatch.setattr("trainer.metrics.curves.BLOCK_BYTES", 50)
    parts = read(folder)
    assert parts.sums["loss"].tolist() == whole.sums["loss"].tolist()
    assert parts.seconds == pytest.approx(whole.seconds)
    assert parts.digests == whole.digests
    assert parts.evaluations == whole.evaluations == [Evaluation(100_000, {"val_loss": 3.0})]


def test_a_damaged_line_and_one_cut_short_are_left_out_and_those_around_them_count(tmp_path):
    folder = write_run(tmp_path, "a", [3.0, 2.0, 1.0])
    path = folder / "metrics.jsonl"
    first, second, third = path.read_text().splitlines(keepends=True)
    path.write_text(
        first + "\n" + second[:20] + "\n" + '["no record"]\n' + third + '{"step": 4, "tokens": 4000, "loss": 0.5}'
    )
    curve = read(folder)
    assert last_tokens(folder) == 3000
    assert curve.num_steps == 2
    assert curve.mean("loss")[curve.counts > 0].tolist() == [3.0, 1.0]


def test_a_loss_that_is_not_finite_is_counted_and_in_no_mean(tmp_path):
    folder = write_run(tmp_path, "a", [3.0, float("nan"), 1.0])
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "tokens": 4000, "loss": null}\n{"step": 5, "tokens": 5000, "loss": "high"}\n')
    curve = read(folder)
    assert curve.num_steps == 5
    assert curve.num_unfinite == 3
    assert np.nansum(curve.sums["loss"]) == 4.0


def test_keys_that_nobody_knows_and_keys_that_are_absent_do_no_harm(tmp_path):
    folder = write_run(tmp_path, "a", [])
    records = [
        {"step": 1, "tokens": 10, "loss": 2.0, "time/data_seconds": 0.1, "odd": {"x": [1]}},
        {"step": 1, "memory/peak_bytes": 5},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    curve = read(folder)
    assert curve.num_steps == 1
    assert curve.seconds is None
    assert curve.medians == {"tokens_per_second": None, "mfu": None}
    assert curve.evaluations == []
    assert np.isnan(curve.hours).all()


def test_every_fact_of_an_evaluation_is_kept(tmp_path):
    facts = {"val_loss": 3.0, "bits_per_byte": 1.1, "lines/acc_norm": 0.5}
    curve = read(write_run(tmp_path, "a", [3.0, 2.0], evaluations={1: facts, 2: {"lines/acc_norm": 0.6}}))
    assert curve.evaluations == [Evaluation(1000, facts), Evaluation(2000, {"lines/acc_norm": 0.6})]


def test_the_last_tokens_of_a_run_without_a_step_are_none(tmp_path):
    folder = write_run(tmp_path, "a", [])
    assert last_tokens(folder) is None
    (folder / "metrics.jsonl").unlink()
    assert last_tokens(folder) is None


def test_a_long_run_is_read_from_its_index_and_comes_to_the_same(tmp_path, monkeypatch):
    folder = write_run(tmp_path, "a", losses(), evaluations={50: {"val_loss": 3.5}, 100: {"val_loss": 3.0}})
    read_whole = read_curve(folder, 10 * STEP_TOKENS)
    monkeypatch.setattr("trainer.metrics.index.BLOCK_STEPS", 10)
    monkeypatch.setattr(curves, "MOST_STEPS_READ", 100)
    CurveIndex(folder).draw()
    monkeypatch.setattr(curves, "chunks", lambda path: pytest.fail("the whole curve was read"))
    found = read_curve(folder, 10 * STEP_TOKENS)
    for name in ("counts", "hours", "tokens", "lowest", "highest"):
        np.testing.assert_allclose(getattr(found, name), getattr(read_whole, name), err_msg=name)
    for metric, sums in read_whole.sums.items():
        np.testing.assert_allclose(found.sums[metric], sums, err_msg=metric)
    for name in (
        "num_steps",
        "last_tokens",
        "last_finite_tokens",
        "seconds",
        "num_unfinite",
        "medians",
        "digests",
        "evaluations",
    ):
        assert (
            getattr(found, name) == pytest.approx(getattr(read_whole, name))
            if name in ("seconds", "medians")
            else getattr(found, name) == getattr(read_whole, name)
        )
