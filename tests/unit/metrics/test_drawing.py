import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from accelerate import Accelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.messages import logged, names
from trainer.metrics import drawing as drawing_module
from trainer.metrics.board import write_end
from trainer.metrics.curves import CURVE
from trainer.metrics.drawing import Drawing
from trainer.metrics.failures import CountedFailures
from trainer.metrics.tags import layout
from trainer.metrics.trackers import PatientTracker, open_trackers


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture
def failures():
    return CountedFailures()


def board(folder):
    accelerator = Accelerator(cpu=True, log_with=["tensorboard"], project_dir=str(folder.parent))
    return open_trackers(accelerator, ["tensorboard"], "run", folder, {}, None)


def write(folder, *records):
    with open(folder / CURVE, "a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def events_of(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


BINS = SimpleNamespace(
    min=-1.0,
    max=1.0,
    num=4,
    sum=0.5,
    sum_squares=2.0,
    bucket_limits=np.array([0.0, 1.0]),
    bucket_counts=np.array([1, 3]),
)


def test_everything_is_drawn_by_the_end_and_in_tensorboards_own_places(folder, failures):
    drawing = Drawing(board(folder), failures)
    drawing.add(0, lambda writer: writer.add_custom_scalars(layout(())))
    drawing.text("run/config", "```yaml\nseed: 1\n```", 0)
    write(folder, {"step": 1, "loss": 2.0, "grad_norm/blocks.00": 0.5}, {"step": 1, "val_loss": 3.0, "play/acc": 0.25})
    drawing.histograms(1, lambda: {"parameters/head": BINS})
    drawing.add(1, lambda _: write_end(folder, 1))
    drawing.close()
    events = events_of(folder)
    tags = events.Tags()
    assert set(tags["scalars"]) == {"Loss/train", "grad_norm/blocks.00", "Loss/validation", "evaluation/play/acc"}
    assert tags["histograms"] == ["parameters/head"]
    (histogram,) = events.Histograms("parameters/head")
    assert (histogram.step, histogram.histogram_value.num) == (1, 4.0)
    assert set(events.PluginTagToContent("hparams")) == {"_hparams_/session_end_info"}
    assert "custom_scalars__config__" in events.PluginTagToContent("custom_scalars")
    assert b"seed: 1" in events.Tensors("run/config/text_summary")[0].tensor_proto.string_val[0]
    assert failures.count == 0


def test_settings_are_drawn_before_any_number(folder, failures, monkeypatch):
    """A launch killed in between would otherwise leave numbers, and the next would take the settings for drawn."""
    monkeypatch.setattr(drawing_module, "ROUND_SECONDS", 60)
    order, (tracker,) = [], board(folder)
    monkeypatch.setattr(PatientTracker, "draw", lambda self: order.append("numbers"))
    drawing = Drawing([tracker], failures)
    drawing.add(0, lambda writer: order.append("settings"))
    drawing.close()
    assert order == ["settings", "numbers"]


def test_training_never_waits_for_a_tracker_that_hangs(folder, failures, caplog, monkeypatch):
    monkeypatch.setattr(drawing_module, "LONGEST_END_SECONDS", 0.05)
    monkeypatch.setattr(drawing_module, "ROUND_SECONDS", 0.001)
    reached, go_on = threading.Event(), threading.Event()

    class Hanging:
        name = "wandb"

        def log(self, values, step):
            reached.set()
            go_on.wait(30)

        def finish(self):
            pass

    write(folder, {"step": 1, "loss": 2.0})
    drawing = Drawing([PatientTracker(Hanging(), folder, 0)], failures)
    assert reached.wait(10)
    drawing.text("run/config", "nobody waits here", 0)
    drawing.close()
    logged(caplog, "wandb", "0 s")
    go_on.set()


def test_a_failure_of_one_tracker_is_counted_and_the_others_draw_on(folder, failures, caplog):
    class Broken:
        name = "wandb"

        def log(self, values, step):
            raise ConnectionError("gone")

        def finish(self):
            raise KeyError("gone")

    write(folder, {"step": 1, "loss": 2.0})
    Drawing([PatientTracker(Broken(), folder, 0), *board(folder)], failures).close()
    assert [event.step for event in events_of(folder).Scalars("Loss/train")] == [1]
    assert failures.count == 2
    assert [
        names(said, "wandb", *words) for said, words in zip(caplog.messages, [("gone", 1), ("'gone'", 2)], strict=True)
    ] == [True] * 2


def test_a_histogram_that_cannot_be_counted_is_told_and_costs_nothing_else(folder, failures, caplog):
    drawing = Drawing(board(folder), failures)
    drawing.histograms(1, lambda: {}["missing"])
    write(folder, {"step": 1, "loss": 2.0})
    drawing.close()
    logged(caplog, "tensorboard", "'missing'")
    assert [event.step for event in events_of(folder).Scalars("Loss/train")] == [1]


def test_texts_that_wait_for_a_paused_tensorboard_are_bounded(folder, failures, monkeypatch):
    monkeypatch.setattr(drawing_module, "MAX_EXTRAS", 2)
    monkeypatch.setattr(drawing_module, "ROUND_SECONDS", 60)
    drawing = Drawing(board(folder), failures)
    for step in range(4):
        drawing.text("sample", f"text {step}", step)
    assert failures.count == 2
    drawing.close()
    assert [event.step for event in events_of(folder).Tensors("sample/text_summary")] == [2, 3]


def test_without_tensorboard_there_is_no_text_and_no_thread(failures):
    before = threading.active_count()
    drawing = Drawing([], failures)
    drawing.text("sample", "nobody reads it", 1)
    drawing.close()
    assert threading.active_count() == before
    assert not drawing._extras
