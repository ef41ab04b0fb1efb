import contextlib
import errno
import itertools
import logging
import threading
from types import SimpleNamespace

import pytest
from accelerate import Accelerator
from accelerate.utils import LoggerType
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.tensorflow_stub.io.gfile import LocalFileSystem

from trainer.errors import ConfigError
from trainer.metrics import trackers
from trainer.metrics.trackers import PatientTracker, check_tracker_names, open_trackers


def log_steps(folder, steps, value, resumed_step):
    """One launch of a run called `run`: opens the trackers, logs a number at each step, ends."""
    accelerator = Accelerator(cpu=True, log_with=["tensorboard"], project_dir=str(folder))
    (tracker,) = open_trackers(
        accelerator, ["tensorboard"], "run", folder / "run", {"seed": 1, "name": None, "betas": [0.9]}, resumed_step
    )
    for step in steps:
        tracker.log({"loss/train": value}, step)
    tracker.close()


def points(folder):
    events = EventAccumulator(str(folder / "run"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("loss/train")]


def settings(folder):
    events = EventAccumulator(str(folder / "run"))
    events.Reload()
    return events.PluginTagToContent("hparams")


def test_events_lie_in_the_runs_own_folder(tmp_path):
    log_steps(tmp_path, [1], 1.0, None)
    assert [path.name.startswith("events.out.tfevents.") for path in (tmp_path / "run").iterdir()] == [True]


def test_no_step_is_drawn_twice_after_a_resume(tmp_path):
    log_steps(tmp_path, range(1, 9), 1.0, None)
    log_steps(tmp_path, range(6, 11), 2.0, 5)
    assert points(tmp_path) == [(step, 1.0) for step in range(1, 6)] + [(step, 2.0) for step in range(6, 11)]


def test_no_step_is_drawn_twice_after_a_fresh_start_over_one_that_never_saved(tmp_path):
    log_steps(tmp_path, range(1, 4), 1.0, None)
    log_steps(tmp_path, range(1, 3), 2.0, None)
    assert points(tmp_path) == [(1, 2.0), (2, 2.0)]
    assert settings(tmp_path)


def test_settings_stand_in_tensorboards_own_form_and_survive_a_resume(tmp_path):
    log_steps(tmp_path, [1, 2], 1.0, None)
    assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= set(settings(tmp_path))
    assert b"betas" in settings(tmp_path)["_hparams_/session_start_info"]
    log_steps(tmp_path, [1, 2], 1.0, 0)
    assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= set(settings(tmp_path))
    assert len({path.parent for path in tmp_path.rglob("events.out.*")}) == 1


def test_a_tracker_that_accelerate_does_not_know_is_refused_with_the_nearest():
    check_tracker_names(["tensorboard"])
    check_tracker_names([])
    with pytest.raises(ConfigError) as caught:
        check_tracker_names(["tensorbord", "tensorboard", "qqq"])
    assert len(caught.value.problems) == 2
    assert caught.value.problems[0] == "metrics.trackers: unknown tracker 'tensorbord'; did you mean 'tensorboard'?"


@pytest.mark.parametrize("names", [["wandb"], ["wandb", "tensorboard"]])
def test_a_tracker_whose_package_is_missing_is_refused_with_what_to_install(names, monkeypatch):
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: [LoggerType.TENSORBOARD])
    with pytest.raises(ConfigError, match="'wandb' needs its package, which is not installed; .*pip install wandb"):
        check_tracker_names(names)
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: [LoggerType.TENSORBOARD, LoggerType.WANDB])
    check_tracker_names(names)


def test_another_tracker_is_given_the_settings(tmp_path, monkeypatch):
    given = []

    class Stub:
        is_main_process, trackers = True, ()

        def init_trackers(self, name, config, init_kwargs):
            given.append((name, init_kwargs))

        def get_tracker(self, name):
            return self

        def store_init_configuration(self, values):
            given.append(values)

    open_trackers(Stub(), ["wandb"], "run", tmp_path, {"seed": 1, "betas": [1]}, 7)
    assert given == [("run", {"tensorboard": {"purge_step": 8}}), {"seed": 1, "betas": "[1]"}]


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
    append = LocalFileSystem.append

    def half(self, filename, content, binary_mode=False):
        if state.full:
            append(self, filename, content[: len(content) // 2], binary_mode)
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, filename, content, binary_mode)

    monkeypatch.setattr(LocalFileSystem, "append", half)
    return state


def test_a_moment_of_full_disk_costs_its_own_points_and_no_others(tmp_path, disk, now, caplog, capsys):
    caplog.set_level(logging.INFO)
    accelerator = Accelerator(cpu=True, log_with=["tensorboard"], project_dir=str(tmp_path))
    (tracker,) = open_trackers(accelerator, ["tensorboard"], "run", tmp_path / "run", {}, None)
    failures = []
    for step in range(1, 41):
        disk.full = 5 <= step < 15
        now[0] += 1
        try:
            tracker.log({"loss/train": 1.0, "optim/lr": 2.0}, step)
        except OSError as error:
            failures.append((step, error))
    tracker.close()
    assert [step for step, _ in failures] == [5, 6, 8, 12], "the pauses double"
    assert len({id(error) for _, error in failures}) == len(failures), "no error is raised twice: its traceback would grow"
    assert [step for step, _ in points(tmp_path)] == [*range(1, 5), *range(20, 41)]
    assert "tensorboard is written again; 15 entries are missing in it, metrics.jsonl has them" in caplog.text
    assert "Traceback" not in capsys.readouterr().err, "a writer that dies says nothing beside it"
    assert sum(thread.is_alive() for thread in threading.enumerate() if "AsyncWriter" in type(thread).__name__) == 0


def test_a_tracker_that_stays_broken_is_asked_ever_more_rarely(now):
    asked = []

    class Broken:
        name = "wandb"

        def log(self, values, step):
            asked.append(now[0])
            raise KeyError("a failure of its own kind")

    tracker = PatientTracker(Broken())
    for _ in range(5000):
        now[0] += 1
        with contextlib.suppress(KeyError):
            tracker.log({}, 1)
    pauses = [after - before for before, after in itertools.pairwise(asked)]
    assert pauses[:4] == [1, 2, 4, 8] and set(pauses[10:]) == {trackers.LONGEST_PAUSE_SECONDS}


def test_an_error_of_another_thread_is_told(capsys):
    thread = threading.Thread(name="ours")
    trackers._tell_end_of_thread(threading.ExceptHookArgs([OSError, OSError("ours"), None, thread]))
    assert "ours" in capsys.readouterr().err
