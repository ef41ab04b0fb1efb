import itertools
import json

import pytest

from trainer.metrics import curves
from trainer.metrics.curves import CURVE, LOST, Curve, cut_after, end_of_step, lost_records, read_records


def write(folder, steps, tail=b""):
    content = b"".join(json.dumps({"step": step, "loss": step / 2}).encode() + b"\n" for step in steps)
    (folder / CURVE).write_bytes(content + tail)


def steps(path):
    return [record["step"] for record in read_records(path)]


def test_an_absent_curve_has_no_records(tmp_path):
    assert read_records(tmp_path / CURVE) == []
    assert cut_after(tmp_path, 3) == 0
    assert list(tmp_path.iterdir()) == []


def test_records_are_read_as_they_were_appended(tmp_path):
    curve = Curve(tmp_path)
    curve.append({"step": 1, "loss": 0.1 + 0.2})
    assert read_records(tmp_path / CURVE) == [{"step": 1, "loss": 0.1 + 0.2}]
    curve.append({"step": 2, "loss": None})
    curve.sync()
    curve.close()
    assert steps(tmp_path / CURVE) == [1, 2]


def test_records_after_the_step_move_to_the_lost_ones(tmp_path):
    write(tmp_path, [1, 2, 2, 3, 4])
    assert cut_after(tmp_path, 2) == 2
    assert steps(tmp_path / CURVE) == [1, 2, 2]
    assert steps(tmp_path / LOST) == [3, 4]
    assert cut_after(tmp_path, 2) == 0


def test_the_lost_ones_of_several_resumes_stand_behind_each_other(tmp_path):
    for number in (3, 4):
        write(tmp_path, range(1, number + 1))
        cut_after(tmp_path, 2)
    assert steps(tmp_path / LOST) == [3, 3, 4]


@pytest.mark.parametrize(
    "tail",
    [b'{"step": 3, "lo', b'{"step": 3}', b"\0\0\0\0", b"\0\0\n", b"5\n", b'{"st', b"\xff\xfe\n", b'{"loss": 1}\n'],
)
def test_a_line_that_a_crash_cut_short_goes(tmp_path, tail):
    write(tmp_path, [1, 2], tail)
    assert steps(tmp_path / CURVE) == [1, 2]
    assert cut_after(tmp_path, 2) == 0
    assert (tmp_path / CURVE).read_bytes().endswith(b"1.0}\n")
    assert steps(tmp_path / CURVE) == [1, 2]


def test_a_damaged_line_costs_no_other_line(tmp_path):
    write(tmp_path, range(1, 9))
    content = (tmp_path / CURVE).read_bytes()
    (tmp_path / CURVE).write_bytes(content.replace(b'"step": 3', b'"step": \xff', 1))
    assert steps(tmp_path / CURVE) == [1, 2, 4, 5, 6, 7, 8]
    cut_after(tmp_path, 6)
    assert steps(tmp_path / CURVE) == [1, 2, 4, 5, 6]
    assert steps(tmp_path / LOST) == [7, 8]


def test_the_lost_ones_are_durable_before_the_curve_is_cut(tmp_path, monkeypatch):
    write(tmp_path, [1, 2, 3])
    monkeypatch.setattr("trainer.files.truncate_file", lambda *_: (_ for _ in ()).throw(OSError("crash")))
    with pytest.raises(OSError, match="crash"):
        cut_after(tmp_path, 1)
    assert steps(tmp_path / CURVE) == [1, 2, 3]
    assert steps(tmp_path / LOST) == [2, 3]
    monkeypatch.undo()
    cut_after(tmp_path, 1)
    assert steps(tmp_path / CURVE) == [1]
    assert steps(tmp_path / LOST) == [2, 3, 2, 3]


def test_lost_records_are_not_glued_to_a_line_that_a_crash_cut_short(tmp_path):
    write(tmp_path, [1, 2])
    (tmp_path / LOST).write_text('{"step": 9}\n{"step": 1')
    cut_after(tmp_path, 1)
    assert steps(tmp_path / LOST) == [9, 2]


@pytest.mark.parametrize("looked_back", [10_000, 0], ids=["of-earlier-resumes-too", "of-this-one-alone"])
def test_of_ever_so_many_lost_steps_those_that_are_taken_again_first_are_read_and_no_more(
    tmp_path, monkeypatch, looked_back
):
    monkeypatch.setattr(curves, "MAX_COMPARED", 5)
    monkeypatch.setattr(curves, "_LOST_BYTES", looked_back)
    before, now = (
        b"".join(json.dumps({"step": step, "loss": loss}).encode() + b"\n" for step in steps)
        for steps, loss in ((range(96, 200), 1.0), (range(103, 9_000), 2.0))
    )
    (tmp_path / LOST).write_bytes(before + now)
    read = []
    monkeypatch.setattr(curves, "_record", lambda line: read.append(line) or json.loads(line))
    found = [(record["step"], record["loss"]) for record in lost_records(tmp_path, 99, len(before))]
    of_before = [(step, 1.0) for step in range(100, 105)]
    assert found == [*(of_before if looked_back else []), (103, 2.0), (104, 2.0)]
    assert len(read) < 120, "what was lost beyond is read by nobody"


def test_the_end_of_an_early_step_is_found_without_reading_all_that_came_after_it(tmp_path, monkeypatch):
    steps = [
        step for step in range(1, 20_001) for _ in range(1 + (step % 100 == 0))
    ]  # an evaluation beside each hundredth
    lines = [json.dumps({"step": step, "loss": 3.5, "pad": "x" * (step % 50)}).encode() + b"\n" for step in steps]
    lines[777], lines[15_000] = b"damaged\n", b'{"step": \n'
    (tmp_path / CURVE).write_bytes(b"".join(lines) + b'{"step": 20001')
    ends = dict(zip(steps, itertools.accumulate(map(len, lines))))  # of the last line of each step
    ends[steps[777]] = ends[steps[777] - 1]
    ends[steps[15_000]] = ends[steps[15_000] - 1]
    num_read = 0

    def counted(line, record=curves._record):
        nonlocal num_read
        num_read += 1
        return record(line)

    monkeypatch.setattr(curves, "_record", counted)
    monkeypatch.setattr(curves, "SCANNED_BYTES", 1 << 12, raising=False)
    wanted = [1, 2, 99, 100, 101, 771, 772, 773, 9_999, 14_850, 14_851, 14_852, 19_999, 20_000]
    assert {step: end_of_step(tmp_path / CURVE, step) for step in wanted} == {step: ends[step] for step in wanted}
    assert end_of_step(tmp_path / CURVE, 0) == 0
    assert end_of_step(tmp_path / CURVE, 10**9) == ends[20_000]
    assert num_read / (len(wanted) + 2) < 3_000
