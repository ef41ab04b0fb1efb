"""The index of a curve: whoever reads it knows what whoever reads the whole curve does."""

import json
from dataclasses import asdict

import pytest

from trainer.metrics import index
from trainer.metrics.curves import CURVE, cut_after
from trainer.metrics.index import INDEX, Block, CurveIndex, scan
from trainer.metrics.totals import totals_of


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(index, "BLOCK_STEPS", 4)


def write(folder, steps, scale=1.0):
    with open(folder / CURVE, "a") as file:
        for step in steps:
            loss = None if step % 7 == 0 else scale / step
            content = {
                "step": step,
                "tokens": 10 * step,
                "loss": loss,
                "grad_norm": 1.0,
                "step_seconds": 0.5,
                "data_digest": f"d{step}",
            }
            file.write(json.dumps(content) + "\n")
            if step % 6 == 0:
                file.write(json.dumps({"step": step, "tokens": 10 * step, "val_loss": 2.0 / step}) + "\n")


def indexed(folder):
    found = CurveIndex(folder)
    found.draw()
    return found


def without_index(folder):
    content = (folder / INDEX).read_bytes()
    (folder / INDEX).unlink()
    found = totals_of(folder / CURVE)
    (folder / INDEX).write_bytes(content)
    return found


def kinds(folder):
    return ["block" if isinstance(found, Block) else found["step"] for found in scan(folder / CURVE)]


def test_totals_are_the_same_with_the_index_and_without(tmp_path):
    write(tmp_path, range(1, 31))
    indexed(tmp_path)
    assert kinds(tmp_path) == ["block"] * 7 + [29, 30, 30]
    assert totals_of(tmp_path / CURVE) == without_index(tmp_path)
    assert totals_of(tmp_path / CURVE).last_evaluation["step"] == 30
    assert totals_of(tmp_path / CURVE).seconds == 15.0


def test_a_block_has_what_its_steps_come_to(tmp_path):
    write(tmp_path, range(1, 9))
    indexed(tmp_path)
    second = list(scan(tmp_path / CURVE))[1]
    assert (
        second.step,
        second.num_steps,
        second.num_unfinite,
        second.tokens,
        second.finite_tokens,
        second.seconds,
    ) == (8, 4, 1, 80, 80, 2.0)
    assert second.sums["loss"] == pytest.approx(1 / 5 + 1 / 6 + 1 / 8)
    assert (second.lowest, second.highest) == (
        1 / 8,
        1 / 5,
    )
    assert second.elapsed == 0.5 + 1.0 + 2.0
    assert second.digest == "d8"
    assert [each["step"] for each in second.evaluations] == [6]


def test_a_resume_that_goes_back_takes_the_index_back(tmp_path):
    write(tmp_path, range(1, 31))
    indexed(tmp_path)
    cut_after(tmp_path, 17)
    assert totals_of(tmp_path / CURVE).step == 17, "before anybody has mended the index"
    write(tmp_path, range(18, 25), scale=0.001)
    assert kinds(tmp_path)[:5] == ["block"] * 4 + [17]
    indexed(tmp_path)
    assert totals_of(tmp_path / CURVE) == without_index(tmp_path)
    assert kinds(tmp_path) == ["block"] * 6 + [24]


def test_an_index_of_another_curve_or_with_a_hole_counts_as_far_as_it_fits(tmp_path):
    write(tmp_path, range(1, 31))
    indexed(tmp_path)
    lines = (tmp_path / INDEX).read_text().splitlines(keepends=True)
    (tmp_path / INDEX).write_text("".join([lines[0], "{damaged\n", *lines[2:], lines[-1][:20]]))
    assert totals_of(tmp_path / CURVE) == without_index(tmp_path)
    (tmp_path / CURVE).unlink()
    write(tmp_path, range(1, 4), scale=1.2345678)
    assert kinds(tmp_path) == [1, 2, 3]


def test_a_full_disk_costs_no_block(tmp_path, monkeypatch):
    write(tmp_path, range(1, 13))
    follower = CurveIndex(tmp_path)
    with monkeypatch.context() as full:
        full.setattr("trainer.files.append_line", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(OSError):
            follower.draw()
    follower.draw()
    assert kinds(tmp_path) == ["block"] * 3 + [12]


def test_a_line_of_another_version_is_no_block(tmp_path):
    write(tmp_path, range(1, 9))
    indexed(tmp_path)
    blocks = [asdict(found) for found in scan(tmp_path / CURVE)]
    (tmp_path / INDEX).write_text("".join(json.dumps({**block, "new": 1}) + "\n" for block in blocks))
    assert kinds(tmp_path)[:3] == [1, 2, 3]
