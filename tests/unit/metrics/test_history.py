"""TensorBoard's files of a long run: thin where it is old, whole at its end, each step once for whoever reads them, whenever."""

import json
import math

import pytest
from accelerate import Accelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.events import EVERYTHING, drawn_twice
from trainer.metrics import event_files, history, thinning
from trainer.metrics.curves import CURVE, cut_after
from trainer.metrics.thinning import width
from trainer.metrics.trackers import open_trackers


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """As if 10 steps were 10,000, and 20 were 2,000."""
    monkeypatch.setattr(thinning, "DENSE_STEPS", 10)
    monkeypatch.setattr(history, "KEPT_STEPS", 20)
    monkeypatch.setattr(history, "ROUND_STEPS", 30)


def append(folder, steps, value=1.0):
    (folder / "run").mkdir(exist_ok=True)
    with open(folder / "run" / CURVE, "a") as file:
        file.writelines(json.dumps({"step": step, "loss": value + step % 2, "tokens": step}) + "\n" for step in steps)


def opened(folder, resumed_step=None):
    (folder / "run").mkdir(exist_ok=True)
    cut_after(folder / "run", -1 if resumed_step is None else resumed_step)
    accelerator = Accelerator(cpu=True, log_with=["tensorboard"], project_dir=str(folder))
    (tracker,) = open_trackers(accelerator, ["tensorboard"], "run", folder / "run", {}, resumed_step)
    return tracker


def draw_on(tracker, folder, steps, *, at_once=10, value=1.0):
    steps = list(steps)
    for first in range(0, len(steps), at_once):
        append(folder, steps[first : first + at_once], value)
        tracker.draw()


def read(folder):
    events = EventAccumulator(str(folder / "run"), size_guidance=EVERYTHING)
    events.Reload()
    return events


def steps_of(events, tag="Loss/train"):
    return [event.step for event in events.Scalars(tag)]


def check(folder, last, *, value=1.0, tag="Loss/train"):
    """Every number once, the end dense, the beginning thin, and nothing of another value."""
    events = read(folder)
    steps = steps_of(events, tag)
    assert steps == sorted(set(steps))
    assert drawn_twice(events) == []
    assert steps[-20:] == list(range(last - 19, last + 1))
    assert all(value <= event.value <= value + 1 for event in events.Scalars(tag))
    return events, steps


def files_of(folder):
    return [path.name.rpartition(".")[2] for path in event_files.event_files(folder / "run")]


def test_a_long_run_is_thin_and_its_end_is_whole(tmp_path):
    tracker = opened(tmp_path)
    tracker.attempt(0, lambda: tracker.writer.add_text("once", "text", 0))
    draw_on(tracker, tmp_path, range(1, 801))
    tracker.attempt(795, lambda: tracker.writer.add_text("late", "text", 795))
    draw_on(tracker, tmp_path, range(801, 1001))
    tracker.close()
    events, steps = check(tmp_path, 1000)
    assert steps[:19] == list(range(1, 20))
    assert len(steps) < 130
    assert files_of(tmp_path) == ["history", "recent"]
    assert {"Loss/train_min", "Loss/train_max"} <= set(events.Tags()["scalars"])
    assert {event.value for event in events.Scalars("Loss/train_max")} == {2.0}
    assert [event.step for tag in ("once", "late") for event in events.Tensors(f"{tag}/text_summary")] == [0, 795]
    assert all(event.wall_time > 1e9 for event in events.Scalars("Loss/train"))


def test_a_resumed_run_goes_on_with_its_history(tmp_path):
    for first in range(1, 600, 100):
        tracker = opened(tmp_path, first - 1 if first > 1 else None)
        draw_on(tracker, tmp_path, range(first, first + 110))
        tracker.close()
    _, steps = check(tmp_path, 610)
    assert len(steps) < 130


@pytest.mark.parametrize("back_to", [0, 150, 395])
def test_a_run_that_goes_back_takes_its_history_back(tmp_path, back_to):
    tracker = opened(tmp_path)
    draw_on(tracker, tmp_path, range(1, 401), value=5.0)
    tracker.close()
    tracker = opened(tmp_path, back_to or None)
    draw_on(tracker, tmp_path, range(back_to + 1, back_to + 31), value=9.0)
    assert max(steps_of(read(tmp_path))) == back_to + 30
    draw_on(tracker, tmp_path, range(back_to + 31, 601), value=9.0)
    tracker.close()
    events = read(tmp_path)
    steps = steps_of(events)
    assert steps == sorted(set(steps))
    assert steps[-20:] == list(range(581, 601))
    assert drawn_twice(events) == []
    values = {event.step: event.value for event in events.Scalars("Loss/train")}
    assert all(value <= 6 for step, value in values.items() if step <= back_to)
    assert all(
        value >= 9 for step, value in values.items() if step > back_to + width(back_to)
    )  # a point may be of steps of both


class Crash(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("number", range(5))
def test_a_crash_at_any_instant_of_thinning_costs_no_step_and_doubles_none(tmp_path, monkeypatch, number):
    tracker = opened(tmp_path)
    draw_on(tracker, tmp_path, range(1, 121))
    append(tmp_path, range(121, 161))
    calls = []

    def dying(function):
        def call(*arguments, **keywords):
            calls.append(function)
            if len(calls) > number:
                raise Crash
            return function(*arguments, **keywords)

        return call

    with monkeypatch.context() as crashing:
        for owner, name in (
            (event_files.BoardWriter, "go_on_in_new_file"),
            (history, "_add_to_history"),
            (history.files, "write_atomic"),
            (history.History, "_remove_recent_before"),
        ):
            crashing.setattr(owner, name, dying(getattr(owner, name)))
        if number < 4:
            with pytest.raises(Crash):
                tracker.draw()
        else:
            tracker.draw()
    check(tmp_path, 160)
    tracker = opened(tmp_path, 160)
    check(tmp_path, 160)
    draw_on(tracker, tmp_path, range(161, 301))
    tracker.close()
    check(tmp_path, 300)
    assert files_of(tmp_path) == ["history", "recent"]


def test_a_full_disk_amid_thinning_costs_nothing(tmp_path, monkeypatch):
    now, is_full = [1000.0], [False]
    monkeypatch.setattr("trainer.metrics.trackers.time.monotonic", lambda: now[0])
    write = event_files.write_some

    def half(file, content):
        if is_full[0]:
            file.write(content[: len(content) // 2])
            raise OSError(28, "No space left on device")
        return write(file, content)

    monkeypatch.setattr(event_files, "write_some", half)
    tracker = opened(tmp_path)
    for step in range(1, 401):
        now[0] += 1
        is_full[0] = step % 50 < 9
        try:
            draw_on(tracker, tmp_path, [step])
        except OSError:
            pass
    now[0], is_full[0] = now[0] + 10_000, False
    draw_on(tracker, tmp_path, [401])
    tracker.close()
    _, steps = check(tmp_path, 401)
    assert len(steps) < 150


def test_files_of_earlier_versions_stay_and_their_curves_go_on_under_the_names_they_have(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "run")) as writer:
        for step in range(1, 101):
            writer.add_scalar("loss/train", 1.0, step)
    append(tmp_path, range(1, 81))
    (tmp_path / "run" / ".drawn-tensorboard").write_text(f"{(tmp_path / 'run' / CURVE).stat().st_size:020d}\n")
    tracker = opened(tmp_path, 80)
    draw_on(tracker, tmp_path, range(81, 401))
    tracker.close()
    events, steps = check(tmp_path, 400, tag="loss/train")
    assert "Loss/train" not in events.Tags()["scalars"]
    assert steps[:80] == list(range(1, 81))
    assert 80 < len(steps) < 180


@pytest.mark.parametrize("days", [-2, 2])
def test_a_clock_that_jumps_between_launches_costs_no_step(tmp_path, monkeypatch, days):
    tracker = opened(tmp_path)
    draw_on(tracker, tmp_path, range(1, 20))
    tracker.close()
    now = event_files.time.time()
    with monkeypatch.context() as jumped:
        jumped.setattr(event_files.time, "time", lambda: now + days * 86400)
        tracker = opened(tmp_path, 15)
        draw_on(tracker, tmp_path, range(16, 31), value=math.pi)
        tracker.close()
    tracker = opened(tmp_path, 25)
    draw_on(tracker, tmp_path, range(26, 41), value=math.pi)
    tracker.close()
    events = read(tmp_path)
    assert steps_of(events) == list(range(1, 41))
    assert events.Scalars("Loss/train")[30].value > 3
