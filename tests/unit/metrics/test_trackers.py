import contextlib
import errno
import itertools
import json
import logging
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from accelerate.utils import LoggerType
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.messages import logged, refuses, says
from trainer.errors import ConfigError, TrainerError
from trainer.metrics import event_files, trackers
from trainer.metrics.curves import CURVE, cut_after
from trainer.metrics.trackers import PatientTracker, check_tracker_names, open_trackers, opening


def write_curve(folder, records):
    """Appends records to the curve of the run called `run`."""
    (folder / "run").mkdir(exist_ok=True)
    with open(folder / "run" / CURVE, "a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def steps_of(steps, value):
    return [{"step": step, "loss": value, "lr": 2 * value} for step in steps]


def open_board(folder, resumed_step):
    accelerator = Accelerator(cpu=True, log_with=["tensorboard"], project_dir=str(folder))
    (tracker,) = open_trackers(accelerator, ["tensorboard"], "run", folder / "run", {}, resumed_step)
    return tracker


def draw_steps(folder, steps, value, resumed_step):
    """One launch of a run called `run`: cuts the curve, opens the trackers, draws a number at each step, ends."""
    (folder / "run").mkdir(exist_ok=True)
    cut_after(folder / "run", -1 if resumed_step is None else resumed_step)
    tracker = open_board(folder, resumed_step)
    write_curve(folder, steps_of(steps, value))
    tracker.draw()
    tracker.close()


def points(folder, tag="Loss/train"):
    events = EventAccumulator(str(folder / "run"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_events_lie_in_the_runs_own_folder(tmp_path):
    draw_steps(tmp_path, [1], 1.0, None)
    assert len(list((tmp_path / "run").glob("events.out.tfevents.*"))) == 1
    assert [path for path in (tmp_path / "run").rglob("*") if path.is_dir()] == []


def test_no_step_is_drawn_twice_after_a_resume(tmp_path):
    draw_steps(tmp_path, range(1, 9), 1.0, None)
    draw_steps(tmp_path, range(6, 11), 2.0, 5)
    assert points(tmp_path) == [(step, 1.0) for step in range(1, 6)] + [(step, 2.0) for step in range(6, 11)]


def test_no_step_is_drawn_twice_after_a_fresh_start_over_one_that_never_saved(tmp_path):
    draw_steps(tmp_path, range(1, 4), 1.0, None)
    draw_steps(tmp_path, range(1, 3), 2.0, None)
    assert points(tmp_path) == [(1, 2.0), (2, 2.0)]


def test_what_a_killed_launch_had_written_and_not_drawn_is_drawn_by_the_next(tmp_path):
    draw_steps(tmp_path, range(1, 4), 1.0, None)
    write_curve(tmp_path, steps_of([4, 5], 1.0))
    draw_steps(tmp_path, [6], 1.0, 5)
    assert [step for step, _ in points(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_step_that_was_drawn_in_part_is_forgotten_and_drawn_whole(tmp_path):
    """Killed after the loss of step 3 was in the event file, and before its evaluation was."""
    draw_steps(tmp_path, range(1, 4), 1.0, None)
    write_curve(tmp_path, [{"step": 3, "val_loss": 7.0}])
    draw_steps(tmp_path, [4], 1.0, 3)
    assert [step for step, _ in points(tmp_path)] == [1, 2, 3, 4]
    assert points(tmp_path, "Loss/validation") == [(3, 7.0)]


def test_a_tracker_that_is_new_to_a_run_draws_it_from_its_beginning(tmp_path):
    write_curve(tmp_path, steps_of(range(1, 6), 1.0))
    draw_steps(tmp_path, [6], 1.0, 5)
    assert [step for step, _ in points(tmp_path)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("content", ["", "nonsense", "99999999"])
def test_a_mark_that_is_damaged_costs_no_point_and_doubles_none(tmp_path, content):
    draw_steps(tmp_path, range(1, 6), 1.0, None)
    (tmp_path / "run" / ".drawn-tensorboard").write_text(content)
    draw_steps(tmp_path, [6], 1.0, 5)
    assert [step for step, _ in points(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_tracker_that_accelerate_does_not_know_is_refused_with_the_nearest():
    check_tracker_names(["tensorboard"])
    check_tracker_names([])
    with pytest.raises(ConfigError) as caught:
        check_tracker_names(["tensorbord", "tensorboard", "qqq"])
    assert len(caught.value.problems) == 2
    says(caught.value.problems[0], "metrics.trackers", "'tensorbord'", "'tensorboard'")


def test_a_tracker_that_is_named_twice_is_refused():
    with refuses(ConfigError, "metrics.trackers", "'tensorboard'", "twice"):
        check_tracker_names(["tensorboard", "tensorboard"])


def test_options_that_no_tracker_takes_are_told(tmp_path, caplog):
    (tmp_path / "run").mkdir()
    accelerator = Accelerator(cpu=True, log_with=["tensorboard"], project_dir=str(tmp_path))
    open_trackers(
        accelerator, ["tensorboard"], "run", tmp_path / "run", {}, None, {"wandb": {"entity": "me"}, "tensorboard": {}}
    )
    [said] = caplog.messages
    says(said, "metrics.tracker_options", "'wandb'", "metrics.trackers")


@pytest.mark.parametrize("names", [["wandb"], ["wandb", "tensorboard"]])
def test_a_tracker_whose_package_is_missing_is_refused_with_what_to_install(names, monkeypatch):
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: [LoggerType.TENSORBOARD])
    with refuses(ConfigError, "'wandb'", f"{sys.executable} -m pip install wandb"):
        check_tracker_names(names)
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: [LoggerType.TENSORBOARD, LoggerType.WANDB])
    check_tracker_names(names)


class Other:
    """One of Accelerate's trackers that is not TensorBoard."""

    name = "wandb"
    requires_logging_directory = False
    made = []

    def __init__(self, run_name, **keywords):
        self.calls = [("open", run_name, keywords)]
        self.made.append(self)

    def start(self):
        pass

    def store_init_configuration(self, values):
        self.calls.append(("settings", values))

    def log(self, values, step):
        self.calls.append((step, values))

    def finish(self):
        self.calls.append("end")


@pytest.fixture
def other(monkeypatch):
    Other.made = []
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", Other)
    return Other


def open_two(folder, resumed_step, options=None):
    accelerator = Accelerator(cpu=True, log_with=["tensorboard"], project_dir=str(folder))
    names = ["wandb", "tensorboard"]
    return open_trackers(accelerator, names, "run", folder / "run", {"seed": 1, "betas": [1]}, resumed_step, options)


def test_another_tracker_is_given_each_launchs_settings_and_the_same_numbers(tmp_path, other):
    write_curve(tmp_path, steps_of([1, 2], 1.0))
    for resumed_step in (None, 2):
        for tracker in open_two(tmp_path, resumed_step, {"wandb": {"entity": "me"}}):
            tracker.draw()
            tracker.close()
    first, second = (tracker.calls for tracker in other.made)
    opened = (
        "open",
        "run",
        {"name": "run", "id": "run", "dir": str(tmp_path / "run"), "resume": "allow", "entity": "me"},
    )
    numbers = {"Loss/train": 1.0, "optim/lr": 2.0}
    assert first == [opened, ("settings", {"seed": 1, "betas": "[1]"}), (1, numbers), (2, numbers), "end"]
    assert second == [opened, first[1], "end"]
    assert [step for step, _ in points(tmp_path)] == [1, 2]


def test_a_tracker_that_cannot_be_opened_is_told_before_the_first_step_and_does_not_hold_up_a_resume(
    tmp_path, other, caplog
):
    write_curve(tmp_path, steps_of([1], 1.0))
    other.start = lambda self: (_ for _ in ()).throw(ConnectionError("no network"))
    try:
        with refuses(TrainerError, "wandb", "no network", "metrics.trackers"):
            open_two(tmp_path, None)
        (tracker,) = open_two(tmp_path, 1)
        tracker.draw()
        tracker.close()
    finally:
        other.start = lambda self: None
    logged(caplog, "wandb", "no network")
    assert [step for step, _ in points(tmp_path)] == [1]


def test_a_tracker_that_lets_no_setting_change_draws_on_in_a_resume_and_that_is_told(
    tmp_path, other, monkeypatch, caplog
):
    write_curve(tmp_path, steps_of([1], 1.0))
    for tracker in open_two(tmp_path, None):
        tracker.draw()
        tracker.close()
    monkeypatch.setattr(
        other,
        "store_init_configuration",
        lambda self, values: (_ for _ in ()).throw(ValueError("not allowed to change")),
    )
    assert [tracker.name for tracker in open_two(tmp_path, 1)] == ["wandb", "tensorboard"]
    logged(caplog, "not allowed to change")
    with refuses(TrainerError, "not allowed to change"):
        open_two(tmp_path / "new", None)


def test_another_tracker_of_a_long_run_is_given_ever_fewer_points_in_their_order_and_its_end(
    tmp_path, other, monkeypatch
):
    monkeypatch.setattr("trainer.metrics.thinning.DENSE_STEPS", 10)
    write_curve(tmp_path, [])
    for first in range(1, 1000, 100):
        cut_after(tmp_path / "run", first - 1)
        (tracker, board) = open_two(tmp_path, first - 1 if first > 1 else None)
        for step in range(first, first + 110, 10):
            write_curve(tmp_path, [{"step": each, "loss": 1.0 + each % 2} for each in range(step, step + 10)])
            tracker.draw()
        tracker.close()
        board.close()
    drawn = [call for each in other.made for call in each.calls if isinstance(call[0], int)]
    steps = [step for step, _ in drawn]
    assert len(steps) < 150
    assert steps[:19] == list(range(1, 20))
    assert steps[-1] == 1010
    assert all(1.0 <= values["Loss/train"] <= 2.0 for _, values in drawn)
    last = [call[0] for call in other.made[-1].calls if isinstance(call[0], int)]
    assert last == sorted(last)


# A tracker that fails


@pytest.fixture
def now(monkeypatch):
    """A clock that stands still."""
    clock = [1000.0]
    monkeypatch.setattr(trackers.time, "monotonic", lambda: clock[0])
    return clock


@pytest.fixture
def disk(monkeypatch):
    """The disk that events are written to; while it is full, a write gets half of its bytes there."""
    state = SimpleNamespace(full=False)

    def half(file, content):
        if state.full:
            file.write(content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return file.write(content)

    monkeypatch.setattr(event_files, "write_some", half)
    return state


def test_a_moment_of_full_disk_costs_no_point(tmp_path, disk, now, caplog, capsys):
    caplog.set_level(logging.INFO)
    write_curve(tmp_path, [])
    before = threading.enumerate()
    tracker = open_board(tmp_path, None)
    failures = []
    for step in range(1, 41):
        disk.full = 5 <= step < 15
        now[0] += 1
        write_curve(tmp_path, steps_of([step], 1.0))
        try:
            tracker.draw()
        except OSError as error:
            failures.append((step, error))
    tracker.close()
    assert [step for step, _ in failures] == [5, 6, 8, 12], "the pauses double"
    assert len({id(error) for _, error in failures}) == len(failures), (
        "no error is raised twice: its traceback would grow"
    )
    assert [step for step, _ in points(tmp_path)] == list(range(1, 41))
    assert [step for step, _ in points(tmp_path, "optim/lr")] == list(range(1, 41))
    logged(caplog, "tensorboard", "again")
    assert "Traceback" not in capsys.readouterr().err, "a writer that dies says nothing beside it"
    assert not [
        thread for thread in threading.enumerate() if "AsyncWriter" in type(thread).__name__ and thread not in before
    ]


def test_a_tracker_that_stays_broken_is_asked_ever_more_rarely(tmp_path, now):
    asked = []

    class Broken:
        name = "wandb"

        def log(self, values, step):
            asked.append(now[0])
            raise KeyError("a failure of its own kind")

    write_curve(tmp_path, steps_of([1], 1.0))
    tracker = PatientTracker(Broken(), tmp_path / "run", 0)
    for _ in range(5000):
        now[0] += 1
        with contextlib.suppress(KeyError):
            tracker.draw()
    pauses = [after - before for before, after in itertools.pairwise(asked)]
    assert pauses[:4] == [1, 2, 4, 8]
    assert set(pauses[10:]) == {trackers.LONGEST_PAUSE_SECONDS}


@pytest.mark.parametrize(("tracker", "key"), [("wandb", "dir"), ("dvclive", "dir"), ("swanlab", "logdir")])
def test_files_of_a_tracker_go_into_the_runs_folder_and_not_where_one_stands(tmp_path, tracker, key):
    assert tmp_path in [
        Path(opening(tracker, "mine", tmp_path, 0)[key]),
        *Path(opening(tracker, "mine", tmp_path, 0)[key]).parents,
    ]
