import json
import logging
import math
import time
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.messages import logged, says
from trainer.config.schema import MetricsConfig
from trainer.ending.outcome_file import read_outcome
from trainer.errors import TrainerError
from trainer.journal import Journal, read_events
from trainer.metrics import reporter as reporter_module
from trainer.metrics.curves import CURVE, LOST, read_records
from trainer.metrics.machine_load import Counters
from trainer.metrics.meters import SpeedMeter
from trainer.metrics.reporter import Reporter, StepFacts
from trainer.metrics.slow_alarm import TAG, SlowAlarm
from trainer.metrics.trackers import PatientTracker
from trainer.step_result import SaveRequest, StepResult


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


def reporter_of(accelerator, folder, **changes):
    settings = {
        "name": "run",
        "max_steps": 10,
        "replay_key": "key",
        "replay_facts": {"seed": 1},
        "slow_alarm": SlowAlarm(2.0, Journal(folder)),
        "meter": SpeedMeter(flops_per_token=10.0, peak_flops=lambda: 1e9, num_devices=1),
        "features": (),
        "sample": dict,
    }
    of_metrics = {"console_every_steps": 5, "trackers": ["tensorboard"]}
    of_metrics |= {name: changes.pop(name) for name in MetricsConfig.model_fields if name in changes}
    return Reporter(accelerator, folder, MetricsConfig(**of_metrics), **{**settings, **changes})


class Times:
    """Where the time of a step went, 0.25 seconds if nothing is said."""

    def __init__(self, **seconds):
        self._seconds = seconds or {"forward_backward": 0.25}

    def seconds(self):
        return self._seconds

    def step_seconds(self):
        return sum(seconds for part, seconds in self._seconds.items() if part != "save")


def facts_of(step, times=None, **changes):
    facts = {"tokens": step * 32, "step_tokens": 32, "lr": 0.5, "epoch": step / 100, "data_digest": f"d{step}"}
    return StepFacts(step=step, times=times or Times(), **{**facts, **changes})


def result_of(step, loss=None, grad_norm=1.0):
    """Its loss is a function of the step."""
    return StepResult(step, 4.0 / step if loss is None else loss, grad_norm, 0, SaveRequest.NONE)


def take(reporter, step, loss=None, grad_norm=1.0, times=None):
    """One step whose result is there at once, as on a CPU."""
    reporter.step_taken(facts_of(step, times))
    reporter.write([result_of(step, loss, grad_norm)])


def test_a_step_is_written_everywhere_once_its_result_is_there(accelerator, folder, caplog):
    caplog.set_level(logging.INFO)
    reporter = reporter_of(accelerator, folder)
    reporter.open({"seed": 1}, None, {})
    for step in range(1, 6):
        take(reporter, step)
    reporter.sync()
    reporter.close()
    (first, *others) = read_records(folder / CURVE)
    promised = {"step", "tokens", "loss", "grad_norm", "lr", "tokens_per_second", "data_digest"}
    assert promised <= first.keys()
    assert first["loss"] == 4.0
    assert first["tokens"] == 32
    assert "mfu" in first
    assert [record["step"] for record in others] == [2, 3, 4, 5]
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [event.step for event in events.Scalars("Loss/train")] == [1, 2, 3, 4, 5]
    assert {"optim/lr", "optim/grad_norm", "Speed/tokens_per_second", "Speed/mfu", "data/epoch"} <= set(
        events.Tags()["scalars"]
    )
    mean = sum(4.0 / step for step in range(1, 6)) / 5
    assert f"step 5/10  loss {mean:.4f}" in caplog.text
    assert caplog.text.count("tokens/s") == 1


def test_a_loss_that_is_no_number_is_none_in_the_curve(accelerator, folder):
    reporter = reporter_of(accelerator, folder)
    reporter.open({}, None, {})
    take(reporter, 1, loss=math.nan, grad_norm=math.inf)
    reporter.close()
    (line,) = (folder / CURVE).read_text().splitlines()
    record = json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert record["loss"] is None
    assert record["grad_norm"] is None


def test_a_resume_proves_itself_by_the_steps_taken_again(accelerator, folder, caplog):
    caplog.set_level(logging.INFO)
    first = reporter_of(accelerator, folder)
    first.open({}, None, {})
    for step in range(1, 8):
        take(first, step)
    first.close()
    second = reporter_of(accelerator, folder)
    second.open({}, 4, {})
    logged(caplog, "3 records", "step 4", "metrics.lost.jsonl")
    logged(caplog, "3 steps")
    for step in range(5, 9):
        take(second, step)
    second.close()
    says(second.verdict, "exact", "3/3")
    assert [record["step"] for record in read_records(folder / CURVE)] == list(range(1, 9))
    assert [record["step"] for record in read_records(folder / LOST)] == [5, 6, 7]


def test_a_resume_writes_down_what_was_lost_and_could_have_been(accelerator, folder):
    first = reporter_of(accelerator, folder)
    first.open({}, None, {})
    for step in range(1, 5):
        take(first, step)
    first.saved(4, {"checkpoint/write_seconds": 1.0, "checkpoint/worst_lost_work_seconds": 70.0})
    take(first, 5)
    first.evaluation(5, 160, 2.0, {}, 1.5)
    take(first, 6)
    first.close()
    second = reporter_of(accelerator, folder)
    second.open({}, 4, {})
    second.close()
    third = reporter_of(accelerator, folder)
    third.leave_curve()
    third.open({}, None, {})
    third.close()
    keys = ("step", "lost_steps", "lost_seconds", "worst_seconds")
    told = [tuple(event[key] for key in keys) for event in read_events(folder, "train")]
    assert told == [(0, 0, 0, 0), (4, 2, 2.0, 70.0), (0, 4, 1.0, 0)]


def test_the_outcome_says_the_step_that_is_written(accelerator, folder):
    reporter = reporter_of(accelerator, folder)
    reporter.open({}, None, {})
    for step in (1, 2):
        take(reporter, step)
        assert read_outcome(folder)["step"] == step
    reporter.close()


def test_a_resume_that_is_not_exact_is_an_error_in_the_log(accelerator, folder, caplog):
    first = reporter_of(accelerator, folder)
    first.open({}, None, {})
    take(first, 1), take(first, 2)
    first.close()
    second = reporter_of(accelerator, folder)
    second.open({}, 1, {})
    take(second, 2, loss=7.0)
    second.close()
    assert second.verdict.startswith("resume NOT exact: at step 2 loss 7.0 instead of 2.0")
    assert [record.levelname for record in caplog.records if "NOT exact" in record.message] == ["ERROR"]


def test_an_evaluation_stands_in_the_curve_and_in_the_tracker(accelerator, folder, caplog):
    caplog.set_level(logging.INFO)
    reporter = reporter_of(accelerator, folder)
    reporter.open({}, None, {})
    take(reporter, 1)
    reporter.evaluation(1, 32, 3.5, {"bits_per_byte": 1.25}, 0.5)
    reporter.close()
    assert read_records(folder / CURVE)[1] == {
        "step": 1,
        "tokens": 32,
        "val_loss": 3.5,
        "bits_per_byte": 1.25,
        "seconds": 0.5,
    }
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [event.value for event in events.Scalars("Loss/validation")] == [3.5]
    logged(caplog, "step 1", "3.5000", "1.2500", "0.5s")


def test_nothing_is_left_after_the_last_step(accelerator, folder, caplog):
    caplog.set_level(logging.INFO)
    reporter = reporter_of(accelerator, folder, max_steps=2, console_every_steps=1)
    reporter.open({}, None, {})
    take(reporter, 1), take(reporter, 2)
    reporter.close()
    first, last = (message for message in caplog.messages if "tokens/s" in message)
    assert first.endswith(" left")
    assert "left" not in last
    assert reporter._bar._standing.ends_at is None


def test_a_step_is_written_with_its_own_facts_however_late_its_result_comes(accelerator, folder):
    reporter = reporter_of(accelerator, folder)
    reporter.open({}, None, {})
    reporter.step_taken(facts_of(1))
    reporter.step_taken(facts_of(2))
    reporter.write([result_of(1)])
    with pytest.raises(AssertionError), reporter.pause("saving"):
        pass
    reporter.write([result_of(2)])
    take(reporter, 3)
    reporter.close()
    written = [(record["step"], record["data_digest"], record["loss"]) for record in read_records(folder / CURVE)]
    assert written == [(step, f"d{step}", 4.0 / step) for step in (1, 2, 3)]


def test_speed_is_that_of_the_time_that_the_stopwatch_saw_however_late_the_results_come(accelerator, folder):
    reporter = reporter_of(accelerator, folder, max_steps=4)
    reporter.open({}, None, {})
    for step in (1, 2, 3):
        reporter.step_taken(facts_of(step, Times(forward_backward=2.0, report=2.0, save=100.0)))
        reporter.write([result_of(step - 1)] if step > 1 else [])
    reporter.write([result_of(3)])
    assert reporter.step_seconds == 4.0
    reporter.close()
    for record in read_records(folder / CURVE):
        assert (record["step_seconds"], record["tokens_per_second"], record["mfu"]) == (4.0, 8.0, 0.0)
    assert reporter._meter.seconds_left(1) == 4.0


def test_a_run_that_fails_leaves_all_that_is_known_and_waits_for_no_result(accelerator, folder):
    """A device that failed may never answer."""
    reporter = reporter_of(accelerator, folder)
    reporter.open({}, None, {})
    take(reporter, 1)
    reporter.text("samples", "To be", 1)
    reporter.step_taken(facts_of(2))
    reporter.abandon()
    assert reporter._bar._live is None
    assert reporter._sampling._ending.is_set()
    reporter.abandon()
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [event.step for event in events.Scalars("Loss/train")] == [1]
    assert events.Tensors("samples/text_summary")


def test_a_run_whose_outputs_were_closed_has_nothing_left_to_abandon(accelerator, folder, monkeypatch):
    reporter = reporter_of(accelerator, folder)
    reporter.open({}, None, {})
    take(reporter, 1)
    reporter.close(finished=True)
    monkeypatch.setattr(reporter._drawing, "close", lambda: pytest.fail("it was closed before"))
    reporter.abandon()
    reporter_of(accelerator, folder).abandon()  # nor has one that was never opened


def test_a_tracker_that_cannot_be_opened_leaves_the_terminal_alone(accelerator, folder, monkeypatch):
    def refuse(*arguments):
        raise TrainerError("it cannot be opened")

    monkeypatch.setattr(reporter_module, "open_trackers", refuse)
    monkeypatch.setattr(reporter_module, "ProgressBar", lambda max_steps: pytest.fail("a bar over a refusal"))
    with pytest.raises(TrainerError):
        reporter_of(accelerator, folder).open({}, None, {})


def test_only_the_main_process_writes(folder, tmp_path):
    other = SimpleNamespace(
        is_main_process=False,
        init_trackers=lambda *a, **k: None,
        trackers=[],
        log=lambda *a, **k: pytest.fail("logged"),
    )
    reporter = reporter_of(other, folder)
    reporter.open({}, 3, {})
    take(reporter, 4)
    reporter.evaluation(4, 1, 1.0, {}, 1.0)
    reporter.sync()
    reporter.close()
    assert not folder.exists()


class Broken:
    """A tracker that is there no more."""

    name = "wandb"

    def log(self, values, step):
        raise ConnectionError("gone")

    def finish(self):
        raise KeyError("gone")


def test_a_tracker_that_fails_is_counted_and_told_and_never_ends_a_run(accelerator, folder, caplog, monkeypatch):
    reporter = reporter_of(accelerator, folder)
    reporter.open({}, None, {})
    monkeypatch.setattr("trainer.metrics.trackers.FIRST_PAUSE_SECONDS", 0.0)
    broken = PatientTracker(Broken(), folder, 0)
    reporter._drawing._trackers.append(broken)
    for step in range(1, 4):
        take(reporter, step)
        reporter._drawing._draw()
    reporter.close()
    assert [record["step"] for record in read_records(folder / CURVE)] == [1, 2, 3]
    says(caplog.messages[0], "wandb", "gone", 1)
    assert reporter._failures.count >= 4, "three draws and the end, at least"


def test_what_a_full_disk_kept_out_of_the_curve_is_written_at_the_end(accelerator, folder):
    reporter = reporter_of(accelerator, folder)
    reporter.open({}, None, {})

    class Full:
        def write(self, content):
            raise OSError(28, "No space left on device")

    whole = reporter._curve._file
    reporter._curve._file = Full()
    take(reporter, 1)
    reporter._curve._file = whole
    reporter.close()
    assert [record["step"] for record in read_records(folder / CURVE)] == [1]


@pytest.mark.parametrize("is_old", [False, True])
def test_hparams_shows_the_settings_of_the_newest_launch(accelerator, folder, is_old):
    """Also of a run whose first event file has those of its first launch, as earlier versions wrote them."""
    if is_old:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        with SummaryWriter(str(folder)) as writer:
            for summary in hparams({"seed": 1, "rate_of_old": 0.5}, {})[:2]:
                writer.file_writer.add_summary(summary, global_step=0)
    for resumed_step, settings in ((None, {"seed": 1, "rate_before": 0.5}), (1, {"seed": 1, "rate_now": 0.25})):
        reporter = reporter_of(accelerator, folder)
        reporter.open(settings, resumed_step, {})
        take(reporter, 1 + (resumed_step or 0))
        reporter.close()
    events = EventAccumulator(str(folder))
    events.Reload()
    shown = events.PluginTagToContent("hparams")
    assert b"rate_now" in shown["_hparams_/session_start_info"]
    assert b"rate_now" in shown["_hparams_/experiment"]
    assert b"rate_before" not in shown["_hparams_/session_start_info"]
    assert b"rate_of_old" not in shown["_hparams_/session_start_info"]
    assert [event.step for event in events.Scalars("Loss/train")] == [1, 2]


def test_a_step_has_at_most_300_bytes_on_average_and_its_replay_key_is_known_all_the_same(accelerator, folder):
    """With every number as long as at the end of a month, and the details of a model with 30 layer groups as often as then."""
    reporter = reporter_of(accelerator, folder, replay_key="0123456789abcdef", detail_every_steps=147, trackers=[])
    reporter.open({}, None, {})
    groups = {
        f"{what}/block_{number:02}": 0.123456
        for what in ("grad_norm", "param_norm", "update_ratio")
        for number in range(30)
    }
    fat = {"tokens": 14_700_000 * 65536, "lr": 0.1 / 3, "epoch": 100 / 3, "data_digest": "0123456789abcdef"}
    loss = float(torch.tensor(10 / 3))
    long = Times(**dict.fromkeys(("data", "forward_backward", "optimizer", "report"), 0.0123456789))
    for step in range(14_700_000, 14_700_600):
        reading = SimpleNamespace(numbers=lambda: groups, has_histograms=False) if step % 147 == 0 else None
        facts = facts_of(step, long, **fat, measured={"precision/fp8_coverage": 0.98765}, reading=reading)
        reporter.step_taken(facts)
        reporter.write([result_of(step, loss, float(torch.tensor(1 / 3)))])
    reporter.close()
    assert (folder / CURVE).stat().st_size / 600 <= 300
    records = read_records(folder / CURVE)
    assert records[300]["loss"] == loss
    assert records[300]["lr"] == pytest.approx(0.1 / 3, rel=1e-8)
    assert [record["step"] for record in records if "time/data_seconds" in record] == [
        step for step in range(14_700_000, 14_700_600) if step % 147 == 0
    ]
    again = reporter_of(accelerator, folder, replay_key="0123456789abcdef", detail_every_steps=147, trackers=[])
    again.open({}, 14_700_299, {})
    for step in range(14_700_300, 14_700_600):
        again.step_taken(facts_of(step, data_digest="0123456789abcdef"))
        again.write([result_of(step, loss, float(torch.tensor(1 / 3)))])
    again.close()
    says(again.verdict, "exact", "300/300")


def test_a_curve_of_an_earlier_version_is_gone_on_with_and_its_lost_steps_are_compared(accelerator, folder):
    """Its records were fat: spaces, every number in full, and a replay key each."""
    folder.mkdir()
    old = [
        {
            "step": step,
            "tokens": step * 32,
            "lr": 0.5,
            "epoch": step / 100,
            "data_digest": f"d{step}",
            "loss": 4.0 / step,
            "loss_smoothed": 4.0 / step,
            "grad_norm": 1.0,
            "tokens_per_second": 10.0,
            "step_seconds": 0.1,
            "replay_key": "key",
            "time/data_seconds": 0.1,
        }
        for step in (1, 2, 4, 8)
    ]
    (folder / CURVE).write_text("".join(json.dumps(record) + "\n" for record in old))
    reporter = reporter_of(accelerator, folder)
    reporter.open({}, 2, {})
    for step in (4, 8, 16):
        take(reporter, step)
    reporter.close()
    says(reporter.verdict, "exact", "2/2")
    assert [record["step"] for record in read_records(folder / CURVE)] == [1, 2, 4, 8, 16]
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [event.step for event in events.Scalars("Loss/train")] == [1, 2, 4, 8, 16]


def test_slow_steps_are_told_and_drawn_and_pauses_between_steps_are_not(accelerator, folder):
    alarm = SlowAlarm(2.0, Journal(folder), look=lambda root: Counters(at=0.0, num_cores=2), look_seconds=600.0)
    samples = iter(range(1000))
    reporter = reporter_of(
        accelerator,
        folder,
        max_steps=400,
        slow_alarm=alarm,
        sample=lambda: {"host/load": float(next(samples))},
        trackers=[],
    )
    reporter._sampling._seconds = 0.001
    reporter.open({}, None, {})

    def take_all(first, last, **times):
        for step in range(first, last):
            take(reporter, step, times=Times(**times))

    take_all(1, 61, forward_backward=2.0)
    take_all(61, 121, forward_backward=2.0, save=9.0)
    assert not read_events(folder, "slow")
    take_all(121, 151, forward_backward=6.0)
    time.sleep(0.05)  # a sample is taken
    take_all(151, 152, forward_backward=6.0)
    reporter.close()
    (slow,) = read_events(folder, "slow", "slow_over")
    assert 121 < slow["step"] <= 151
    assert slow["ratio"] == 3.0
    assert read_records(folder / CURVE)[-1][TAG] == 3.0
