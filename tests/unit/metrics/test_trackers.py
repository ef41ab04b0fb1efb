import pytest
from accelerate import Accelerator
from accelerate.utils import LoggerType
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trainer.errors import ConfigError
from trainer.metrics import trackers
from trainer.metrics.trackers import check_tracker_names, open_trackers


def log_steps(folder, steps, value, resumed_step):
    """One launch of a run called `run`: opens the trackers, logs a number at each step, ends."""
    accelerator = Accelerator(cpu=True, log_with=["tensorboard"], project_dir=str(folder))
    open_trackers(
        accelerator, ["tensorboard"], "run", folder / "run", {"seed": 1, "name": None, "betas": [0.9]}, resumed_step
    )
    for step in steps:
        accelerator.log({"loss/train": value}, step=step)
    for tracker in accelerator.trackers:
        tracker.finish()


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
        is_main_process = True

        def init_trackers(self, name, config, init_kwargs):
            given.append((name, init_kwargs))

        def get_tracker(self, name):
            return self

        def store_init_configuration(self, values):
            given.append(values)

    open_trackers(Stub(), ["wandb"], "run", tmp_path, {"seed": 1, "betas": [1]}, 7)
    assert given == [("run", {"tensorboard": {"purge_step": 8}}), {"seed": 1, "betas": "[1]"}]
