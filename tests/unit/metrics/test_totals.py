import json

from trainer.metrics.totals import totals_of


def write(folder, records, *, torn=""):
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + torn)
    return path


def test_a_curve_comes_to_its_tokens_its_time_and_its_losses(tmp_path):
    steps = [{"step": n, "loss": float(n), "tokens": 100 * n, "step_seconds": 0.5} for n in range(1, 31)]
    steps[27]["loss"] = None
    evaluations = [{"step": 10, "val_loss": 5.0, "lines/acc": 0.25}, {"step": 30, "val_loss": 4.0}]
    found = totals_of(
        write(tmp_path, [*steps[:10], evaluations[0], *steps[10:], evaluations[1]], torn='{"step": 31, "lo')
    )
    assert (found.step, found.tokens, found.seconds, found.tokens_per_second) == (30, 3000, 15.0, 200.0)
    assert list(found.recent_losses) == [float(n) for n in range(10, 31) if n != 28]
    assert [found.first_evaluation, found.last_evaluation] == evaluations
    assert found.newest == {"step": 30, "val_loss": 4.0, "lines/acc": 0.25}


def test_a_curve_that_is_absent_or_has_lost_its_middle_is_what_is_left(tmp_path):
    assert totals_of(tmp_path / "metrics.jsonl").tokens_per_second is None
    found = totals_of(write(tmp_path, [{"step": 1, "loss": 2.0}, [1], {"step": 3, "loss": 1.0, "tokens": 7}]))
    assert (found.step, found.tokens, found.seconds) == (3, 7, 0.0)
