"""When a run counts as slow, when no longer, and what never counts."""

import json
import logging
import threading
import time
from types import SimpleNamespace

import pytest

from tests.messages import logged
from trainer.journal import Journal
from trainer.metrics import machine_load
from trainer.metrics.machine_load import Counters, descends, look, reasons
from trainer.metrics.slow_alarm import TAG, SlowAlarm
from trainer.metrics.slowdown import SlowdownWatch

FAST = 2.0
"""Seconds of a step: 30 of them are a stretch."""


def changes(seconds, slow_ratio=2.0):
    """(number of the step, slow?) for each change."""
    watch = SlowdownWatch(slow_ratio)
    found = [(number, watch.step(value)) for number, value in enumerate(seconds, start=1)]
    return [(number, change.is_slow) for number, change in found if change]


def test_thirty_slow_steps_are_told_once_and_their_end_once():
    found = changes([FAST] * 60 + [3 * FAST] * 30 + [FAST] * 60)
    assert [is_slow for _, is_slow in found] == [True, False]
    (begins, _), (ends, _) = found
    assert 60 < begins <= 90 < ends <= 120


@pytest.mark.parametrize(
    "seconds",
    [
        [FAST] * 60 + [100 * FAST] + [FAST] * 60,  # one slow step
        [FAST] * 60 + [5 * FAST] * 9 + [FAST] * 60,  # a few, as beside a checkpoint that is written
        [9 * FAST] * 200,  # slow from the start: nothing faster is known
        [5 * FAST] + [FAST] * 100,  # a first step that compiles
        [FAST] * 60 + [1.9 * FAST] * 100,
        [1.6 * FAST, FAST] * 100,
        [1e-9] * 50,
    ],
)
def test_single_slow_steps_slow_starts_and_less_than_the_ratio_are_not(seconds):
    assert changes(seconds) == []


def test_it_is_over_below_one_and_a_half_times_the_best_and_not_before():
    found = changes([FAST] * 60 + [3 * FAST] * 60 + [1.7 * FAST] * 100 + [1.4 * FAST] * 100)
    assert [is_slow for _, is_slow in found] == [True, False]
    assert found[1][0] > 220
    assert [is_slow for _, is_slow in changes([FAST] * 60 + [1.4 * FAST] * 60 + [FAST] * 60, slow_ratio=1.2)] == [
        True,
        False,
    ]


def test_a_stretch_has_at_least_twenty_steps_and_sixty_seconds():
    ((begins, _),) = changes([0.01] * 12000 + [0.05] * 3000)
    assert 12000 + 900 < begins < 12000 + 1300  # half of the steps of sixty seconds
    ((begins, _),) = changes([100.0] * 40 + [300.0] * 40)
    assert begins == 40 + 10  # half of twenty steps


def test_without_a_ratio_nothing_is_slow_and_the_curve_goes_on():
    watch = SlowdownWatch(None)
    assert [watch.step(seconds) for seconds in [FAST] * 60 + [9 * FAST] * 60] == [None] * 120
    assert watch.ratio == pytest.approx(9.0)


def test_the_ratio_is_unknown_before_a_whole_stretch_and_one_at_best():
    watch = SlowdownWatch(2.0)
    watch.step(FAST)
    assert watch.ratio is None
    for _ in range(60):
        watch.step(FAST)
    assert watch.ratio == 1.0


# The alarm


def counters(at, **changes):
    return Counters(at=at, num_cores=2, **changes)


@pytest.fixture
def alarm_of(tmp_path):
    def make(*looks):
        remaining = list(looks)
        return SlowAlarm(
            2.0, Journal(tmp_path), look=lambda root: remaining.pop(0), look_seconds=0.0
        )  # what a look returns is at its own time

    return make


def events(tmp_path):
    path = tmp_path / "journal.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_the_warning_names_step_ratio_and_reasons_and_the_end_is_told(alarm_of, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    busy = {7: ("other", 0.0), 8: ("trainer", 0.0)}
    later = {7: ("other", 18.0), 8: ("trainer", 2.0)}
    alarm = alarm_of(
        counters(0.0, processes=busy, own=frozenset({8})), counters(10.0, processes=later, own=frozenset({8}))
    )
    for step in range(1, 151):
        alarm.step(step, 3 * FAST if 60 < step <= 90 else FAST)
    alarm.wait()
    slow, over = events(tmp_path)
    assert (slow["event"], over["event"]) == ("slow", "slow_over")
    assert 60 < slow["step"] <= 90 < over["step"]
    assert slow["ratio"] == pytest.approx(3.0)
    assert len(slow["reasons"]) == 1
    assert "other 1.8" in slow["reasons"][0]
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "other 1.8" in warnings[0].getMessage()
    assert alarm.values({"host/load": 1.0}) == {TAG: 1.0}


def test_where_the_machine_shows_nothing_that_is_said(alarm_of, tmp_path):
    alarm = alarm_of(counters(0.0), counters(10.0))
    for step in range(1, 91):
        alarm.step(step, 3 * FAST if step > 60 else FAST)
    alarm.wait()
    assert [event["reasons"] for event in events(tmp_path)] == [[]]


def slow_down(alarm):
    for step in range(1, 91):
        alarm.step(step, 3 * FAST if step > 60 else FAST)


def test_the_end_of_a_run_cuts_a_look_short_waits_for_what_is_told_and_blames_nobody_for_it(tmp_path):
    looks = [counters(0.0), counters(0.01, steal_seconds=0.02)]
    alarm = SlowAlarm(2.0, Journal(tmp_path), look=lambda root: looks.pop(0), look_seconds=600.0)
    slow_down(alarm)
    started = time.monotonic()
    alarm.close()
    assert time.monotonic() - started < 5
    assert [(event["event"], event["reasons"]) for event in events(tmp_path)] == [("slow", [])]


def test_a_look_that_hangs_holds_no_end_up_and_one_that_fails_is_told(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("trainer.metrics.slow_alarm.LONGEST_END_SECONDS", 0.05)
    forever = threading.Event()
    alarm = SlowAlarm(2.0, Journal(tmp_path), look=lambda root: forever.wait() and counters(0.0), look_seconds=0.0)
    slow_down(alarm)
    alarm.close()
    assert events(tmp_path) == []

    def broken(root):
        raise PermissionError("/proc is not for you")

    alarm = SlowAlarm(2.0, Journal(tmp_path), look=broken, look_seconds=0.0)
    slow_down(alarm)
    alarm.close()
    forever.set()
    assert [event["event"] for event in events(tmp_path)][:1] == ["slow"]
    logged(caplog, "/proc is not for you")


def test_steps_of_another_kind_are_measured_by_their_own_kind(tmp_path):
    kind = ["fp8"]
    alarm = SlowAlarm(
        2.0, Journal(tmp_path), look=lambda root: counters(0.0), look_seconds=0.0, kind_of_step=lambda step: kind[0]
    )

    def take(number, seconds):
        for _ in range(number):
            alarm.step(1, seconds)
        alarm.wait()
        return [event["event"] for event in events(tmp_path)]

    take(60, FAST)
    kind[0] = "bf16"
    assert take(100, 3 * FAST) == []
    kind[0] = "fp8"
    assert take(60, FAST) == []
    assert take(60, 3 * FAST) == ["slow"]
    assert alarm.values({}) == {TAG: 3.0}


# What the machine shows


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"steal_seconds": 6.0}, "30%"),
        ({"throttled_seconds": 4.0}, "40%"),
        ({"heat_events": 3}, "heat"),
        ({"swapped_bytes": 10**9}, "100 MB/s"),
    ],
)
def test_each_thing_that_slows_a_machine_down_is_a_reason(changes, named):
    (reason,) = reasons(counters(0.0), counters(10.0, **changes))
    assert named in reason
    assert reasons(counters(0.0, **changes), counters(10.0, **changes)) == []


def test_a_gpu_that_heat_or_power_holds_down_is_a_reason_with_its_clock():
    gpus = {
        "gpu/slowed_by_heat/0": 0.0,
        "gpu/slowed_by_power/0": 0.0,
        "gpu/slowed_by_heat/1": 1.0,
        "gpu/sm_clock_hertz/1": 6e8,
    }
    (reason,) = reasons(counters(0.0), counters(1.0), gpus)
    assert "GPU 1" in reason
    assert "600 MHz" in reason
    assert "heat" in reason


def test_the_runs_own_work_and_little_work_of_others_is_no_reason():
    before = counters(0.0, processes={1: ("own", 0.0), 2: ("other", 0.0)}, own=frozenset({1}))
    after = counters(10.0, processes={1: ("own", 20.0), 2: ("other", 1.0)}, own=frozenset({1}))
    assert reasons(before, after) == []


def test_descendants_are_found_through_their_parents():
    parents = {3: 2, 2: 1, 1: 0, 9: 1, 5: 5}
    assert descends(3, 2, parents)
    assert descends(2, 2, parents)
    assert not descends(9, 2, parents)
    assert not descends(5, 2, parents)


def test_a_look_at_this_machine_finds_this_process_and_counts_its_time():
    import os

    before = look(os.getpid())
    ends = time.process_time() + 0.05
    while time.process_time() < ends:
        pass
    after = look(os.getpid())
    assert os.getpid() in before.own
    assert after.processes[os.getpid()][1] > before.processes[os.getpid()][1]
    assert after.at > before.at
    assert os.getppid() not in after.own


def test_what_a_system_counts_is_read_in_its_units(tmp_path, monkeypatch):
    (tmp_path / "cpu.stat").write_text("usage_usec 5\nthrottled_usec 2500000\n")
    monkeypatch.setattr(machine_load, "CGROUP", tmp_path / "cpu.stat")
    for core, events in (("cpu0", "3\n"), ("cpu11", "4\n"), ("cpu2", "")):
        place = tmp_path / "devices/system/cpu" / core / "thermal_throttle"
        place.mkdir(parents=True)
        (place / "core_throttle_count").write_text(events)
    monkeypatch.setattr(machine_load, "SYSTEM", tmp_path)
    monkeypatch.setattr(machine_load.psutil, "cpu_times", lambda: SimpleNamespace(steal=1.5))
    monkeypatch.setattr(machine_load.psutil, "swap_memory", lambda: SimpleNamespace(sin=100, sout=11))
    found = look(0)
    assert (found.throttled_seconds, found.heat_events, found.steal_seconds, found.swapped_bytes) == (2.5, 7, 1.5, 111)
    monkeypatch.setattr(machine_load, "CGROUP", tmp_path / "absent")
    monkeypatch.setattr(machine_load, "SYSTEM", tmp_path / "absent")
    assert (look(0).throttled_seconds, look(0).heat_events) == (0.0, 0)


def test_a_process_id_that_another_process_has_by_now_is_counted_from_its_start():
    before = counters(0.0, processes={2: ("first", 500.0), 3: ("same", 500.0)})
    (reason,) = reasons(before, counters(10.0, processes={2: ("second", 15.0), 3: ("same", 500.0)}))
    assert "second 1.5" in reason
    assert "same" not in reason
