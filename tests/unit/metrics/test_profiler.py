import gzip
import itertools
import json
import logging
import re

import pytest
import torch

from tests.messages import logged, says
from trainer.metrics import profiler as profiler_module
from trainer.metrics.profiler import FOLDER, Profiler

CPU = torch.device("cpu")

PLUGIN_PATTERN = re.compile(r"^(.*?)(\.\d+)?\.pt\.trace\.json(?:\.gz)?$")
"""What torch-tb-profiler takes for a trace: the worker's name, and a number where it has one."""


def run(folder, steps, *, start=0, end=8, rank=0):
    """Steps `start` + 1 to `end` of a run that multiplies matrices."""
    profiler = Profiler(steps, folder, rank=rank, device=CPU)
    profiler.reached(start)
    for step in range(start + 1, end + 1):
        torch.ones(8, 8) @ torch.ones(8, 8)
        profiler.reached(step)
    profiler.close()
    return sorted(path.name for path in (folder / FOLDER).glob("*"))


def events(folder, name):
    with gzip.open(folder / FOLDER / name) as file:
        return json.load(file)["traceEvents"]


@pytest.fixture(autouse=True)
def told(caplog):
    caplog.set_level(logging.INFO)
    return caplog


def test_the_steps_asked_for_and_no_others_are_in_the_trace(tmp_path, told):
    trace, table = reversed(run(tmp_path, (3, 5)))
    assert (trace, table) == ("rank-0-steps-3-5.pt.trace.json.gz", "rank-0-steps-3-5.operators.txt")
    found = events(tmp_path, trace)
    steps = [event for event in found if event["name"].startswith("ProfilerStep#")]
    assert [event["name"] for event in steps] == [f"ProfilerStep#{step}" for step in (3, 4, 5)]
    assert all(event["ts"] + event["dur"] <= after["ts"] for event, after in itertools.pairwise(steps))
    assert [event["name"] for event in found].count("aten::mm") == 3
    assert "aten::mm" in (tmp_path / FOLDER / table).read_text()
    assert "Self CPU" in (tmp_path / FOLDER / table).read_text()
    (line,) = told.messages
    assert f"steps 3 to 5 in {tmp_path / FOLDER / trace}" in line
    assert "ui.perfetto.dev" in line
    assert table in line
    assert PLUGIN_PATTERN.match(trace)[1] == "rank-0-steps-3-5"


@pytest.mark.parametrize(
    ("asked", "start", "end", "recorded"),
    [((1, 1), 0, 3, "1-1"), ((1, 2), 0, 2, "1-2"), ((3, 9), 0, 5, "3-5"), ((3, 5), 3, 8, "4-5"), ((3, 5), 2, 8, "3-5")],
)
def test_a_range_that_a_launch_sees_in_part_is_recorded_in_that_part(tmp_path, asked, start, end, recorded):
    assert f"rank-0-steps-{recorded}.pt.trace.json.gz" in run(tmp_path, asked, start=start, end=end)


@pytest.mark.parametrize("rank", [0, 1])
def test_every_rank_knows_after_which_step_the_profile_is_written(tmp_path, rank):
    profiler = Profiler((3, 5), tmp_path, rank=rank, device=CPU)
    assert [step for step in range(8) if profiler.is_written_after(step)] == [5]
    assert not any(Profiler(None, tmp_path, rank=rank, device=CPU).is_written_after(step) for step in range(8))


def test_a_run_that_is_past_the_range_says_so_once_and_records_nothing(tmp_path, told):
    assert run(tmp_path, (3, 5), start=5, end=9) == []
    [said] = told.messages
    says(said, "step 5", "[3, 5]")


@pytest.mark.parametrize("off", [{"steps": None}, {"steps": (3, 5), "rank": 1}, {"steps": (3, 5), "end": 1}])
def test_nothing_is_recorded_where_nothing_was_asked_for(tmp_path, told, off):
    assert run(tmp_path, **off) == []
    assert not told.messages


def test_a_step_that_does_not_end_is_not_written_and_that_is_said(tmp_path, told):
    profiler = Profiler((1, 3), tmp_path, rank=0, device=CPU)
    profiler.reached(0)
    profiler.close()
    profiler.close()
    assert not (tmp_path / FOLDER).exists()
    [said] = told.messages
    says(said, "step 1")


def test_what_a_launch_that_was_killed_amid_its_trace_has_left_is_removed(tmp_path):
    (tmp_path / FOLDER / ".trace-abc").mkdir(parents=True)
    (tmp_path / FOLDER / ".trace-abc" / "trace.json").touch()
    assert run(tmp_path, (1, 1), end=1) == ["rank-0-steps-1-1.operators.txt", "rank-0-steps-1-1.pt.trace.json.gz"]


def test_a_full_disk_is_told_and_leaves_nothing_half_written(tmp_path, told, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainer.files.fsync_open_file", full)
    assert run(tmp_path, (1, 2)) == []
    logged(told, "No space left on device")
    assert list((tmp_path / FOLDER).iterdir()) == []


def test_a_profiler_that_does_not_start_is_told_and_nothing_else_happens(tmp_path, told, monkeypatch):
    def busy(self):
        raise RuntimeError("another one is running")

    monkeypatch.setattr(profiler_module.profile, "start", busy)
    assert run(tmp_path, (1, 2)) == []
    [said] = told.messages
    says(said, "another one is running")
