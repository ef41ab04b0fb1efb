import pytest
import torch

from trainer.metrics import stopwatch as stopwatch_module
from trainer.metrics.stopwatch import PARTS, TAGS, Stopwatch


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = [100.0]
    monkeypatch.setattr(stopwatch_module.time, "perf_counter", lambda: now[0])
    return now


class FakeEvent:
    """An event of a device that is `behind` the host: it knows its time only once it was waited for."""

    made, clock, waits = 0, [0.0], 0

    def __init__(self, enable_timing):
        assert enable_timing
        FakeEvent.made += 1

    def record(self):
        self.time, self.passed = FakeEvent.clock[0], False

    def synchronize(self):
        FakeEvent.waits += 1
        self.passed = True

    def elapsed_time(self, end):
        return (end.time - self.time) * 1000


@pytest.fixture
def events(monkeypatch):
    """CUDA's events, replaced."""
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    FakeEvent.made, FakeEvent.clock, FakeEvent.waits = 0, [0.0], 0
    return FakeEvent


def take_step(watch, clock, **seconds):
    for part, spent in seconds.items():
        clock[0] += spent
        watch.lap(part)
    return watch.end_step()


def parts(times):
    """The parts of a step that took time."""
    return {part: seconds for part, seconds in times.seconds().items() if seconds}


def test_the_time_since_the_last_lap_belongs_to_the_part_that_ends(clock):
    watch = Stopwatch(torch.device("cpu"))
    clock[0] += 50
    watch.start()
    times = take_step(watch, clock, data=1.0, forward_backward=2.0, optimizer=0.5)
    assert parts(times) == {"data": 1.0, "forward_backward": 2.0, "optimizer": 0.5}
    assert parts(take_step(watch, clock, data=3.0)) == {"data": 3.0}


def test_several_stretches_of_one_part_add_up(clock):
    watch = Stopwatch(torch.device("cpu"))
    watch.start()
    for part, spent in (("data", 1.0), ("forward_backward", 2.0), ("data", 4.0)):
        clock[0] += spent
        watch.lap(part)
    assert parts(watch.end_step()) == {"data": 5.0, "forward_backward": 2.0}


def test_an_evaluation_and_a_save_belong_to_the_step_they_follow(clock):
    watch = Stopwatch(torch.device("cpu"))
    watch.start()
    first = take_step(watch, clock, data=1.0, report=0.25, evaluation=7.0, save=2.0)
    second = take_step(watch, clock, data=1.0, report=0.25)
    assert first.seconds()["evaluation"] == 7.0
    assert first.seconds()["save"] == 2.0
    assert parts(second) == {"data": 1.0, "report": 0.25}


def test_the_time_of_a_step_is_that_of_its_parts_and_of_handing_over_its_numbers_but_not_of_pauses(clock):
    watch = Stopwatch(torch.device("cpu"))
    watch.start()
    first = take_step(watch, clock, data=1.0, forward_backward=2.0, evaluation=7.0, save=2.0, profile=1.0, report=0.25)
    assert first.step_seconds() == 3.25
    clock[0] += 1.0
    watch.lap("data")
    clock[0] += 0.5  # the reduction of the step's numbers
    last = watch.end_step()
    assert last.seconds() == {"data": 1.0, "report": 0.5}
    assert last.step_seconds() == 1.5


def test_on_cuda_a_step_after_a_pause_is_timed_by_the_device_and_not_by_how_fast_it_was_asked_for(events):
    """The host runs ahead: it hands over a step after the pause in no time, while the device takes its two seconds."""
    watch = Stopwatch(torch.device("cuda"))
    watch.start()
    for pause in (5.0, 0.0):
        times = take_step(watch, events.clock, evaluation=pause, data=0.0, forward_backward=2.0)
        assert times.step_seconds() == 2.0


def test_on_cuda_the_parts_are_the_devices_time_and_only_reading_waits(events):
    watch = Stopwatch(torch.device("cuda"))
    watch.start()
    first = take_step(watch, events.clock, data=1.0, forward_backward=2.0)
    second = take_step(watch, events.clock, data=0.5, forward_backward=2.5)
    assert events.waits == 0
    assert parts(second) == {"data": 0.5, "forward_backward": 2.5}
    assert parts(first) == {"data": 1.0, "forward_backward": 2.0} == parts(first)
    assert events.waits == 2


def test_events_are_used_again_once_they_were_read(events):
    watch = Stopwatch(torch.device("cuda"))
    watch.start()
    unread = [take_step(watch, events.clock, data=1.0, optimizer=1.0) for _ in range(3)]
    made = events.made
    for times in unread:
        assert parts(times) == {"data": 1.0, "optimizer": 1.0}
    for _ in range(20):
        assert parts(take_step(watch, events.clock, data=1.0, optimizer=3.0)) == {"data": 1.0, "optimizer": 3.0}
    assert events.made == made


def test_a_part_that_nobody_knows_and_a_watch_that_was_not_started_are_mistakes_in_the_program(clock):
    watch = Stopwatch(torch.device("cpu"))
    for use in (lambda: watch.lap("data"), watch.end_step):
        with pytest.raises(AssertionError, match="start"):
            use()
    watch.start()
    with pytest.raises(AssertionError, match="'datta' is not one of data"):
        watch.lap("datta")


def test_every_part_has_a_tag_with_its_unit_and_a_sentence():
    assert {f"time/{part}_seconds" for part in PARTS} == TAGS.keys()
    assert all(unit == "seconds" and help.endswith(".") for unit, help in TAGS.values())
