import random

import pytest

from trainer.checkpoint.save.schedule import Budget, Costs, LostWorkMeter, SaveSchedule, conflict, plan

CHEAP = Costs(stall_seconds=0.1, write_seconds=2.0, writer_cpu_seconds=0.3, step_seconds=1.0)
DEAR = Costs(stall_seconds=0.9, write_seconds=2.0, writer_cpu_seconds=3.0, step_seconds=1.0)


def measured(budget, costs, now=0.0, times=9):
    """A cadence that measured these costs so often, the last write of which was committed at `now`."""
    cadence = SaveSchedule(budget, now)
    for _ in range(times):
        cadence.stepped(costs.step_seconds)
        cadence.snapshot_taken(now, costs.stall_seconds, to_write=True)
        cadence.write_committed(now, costs.write_seconds, costs.writer_cpu_seconds)
    return cadence


def test_the_interval_leaves_time_to_write_and_for_the_step_that_runs():
    planned = plan(Budget(), CHEAP)
    assert (
        planned.write_interval_seconds == 57.0 and planned.lost_work_seconds == 60.0 and not planned.is_overhead_bound
    )
    assert planned.overhead_fraction == pytest.approx(0.01), "snapshots between the writes spend what is left"
    assert planned.snapshot_interval_seconds == pytest.approx(0.1 / (0.01 - 0.1 / 57))
    assert conflict(Budget(), CHEAP) is None


def test_overhead_wins_where_both_bounds_cannot_be_kept_and_the_sentence_has_the_figures():
    planned = plan(Budget(), DEAR)
    assert planned.write_interval_seconds == pytest.approx(90) and planned.is_overhead_bound
    assert planned.snapshot_interval_seconds is None, "nothing is left for snapshots"
    assert conflict(Budget(), DEAR) == (
        "a save costs 0.9 s of training, so at most 1 % overhead allows one every 90 s: a machine crash may lose 93 s instead of 60 s; "
        "raise checkpoint.max_overhead_fraction to 0.016 or raise checkpoint.max_lost_work_seconds to 93"
    )


@pytest.mark.parametrize(("setting", "value"), [("max_overhead_fraction", 0.016), ("max_lost_work_seconds", 93.0)])
def test_what_the_sentence_advises_ends_the_conflict(setting, value):
    assert conflict(Budget(**{setting: value}), DEAR) is None


def test_the_writers_cpu_time_counts_where_it_is_taken_from_the_step():
    assert plan(Budget(), DEAR).save_seconds == 0.9
    assert plan(Budget(writer_takes_from_step=True), DEAR).save_seconds == pytest.approx(3.9)


def test_a_disk_that_is_too_slow_is_told_as_that():
    slow = Costs(stall_seconds=0.1, write_seconds=45.0, writer_cpu_seconds=1.0, step_seconds=1.0)
    assert plan(Budget(), slow).write_interval_seconds == 45.0
    assert conflict(Budget(), slow) == (
        "a step takes 1 s and writing a checkpoint 45 s, so even with one straight after another a machine crash may lose 91 s instead of "
        "60 s; write to a faster disk, or raise checkpoint.max_lost_work_seconds to 91"
    )


def test_where_the_disk_is_slow_and_saves_are_dear_no_overhead_is_advised_that_would_not_help():
    text = conflict(Budget(), Costs(stall_seconds=9.0, write_seconds=70.0, writer_cpu_seconds=0.0, step_seconds=1.0))
    assert "one every 900 s: a machine crash may lose 971 s instead of 60 s" in text
    assert text.endswith("; raise checkpoint.max_lost_work_seconds to 980")


def test_the_first_write_comes_soon_so_that_costs_are_measured():
    cadence = SaveSchedule(Budget(), now=100.0)
    assert cadence.write_due(109.9) is None and cadence.write_due(110.0) == "budget"
    assert SaveSchedule(Budget(max_lost_work_seconds=5), now=0.0).write_due(5.0) == "budget"
    assert not cadence.snapshot_due(999.0), "a snapshot that nobody wrote yet has cold buffers"


def test_without_a_bound_on_what_may_be_lost_nothing_comes_by_the_clock():
    cadence = SaveSchedule(Budget(max_lost_work_seconds=float("inf"), every_tokens=10), now=0.0)
    assert cadence.write_due(1e12) is None and cadence.write_due(20.0, tokens=11) == "tokens"
    for _ in range(9):
        cadence.snapshot_taken(20.0, 0.1, tokens=9, to_write=True)
        cadence.write_committed(22.0, 2.0, 0.3)
    assert (
        cadence.write_due(1e12) is None
        and cadence.news() is None
        and cadence.plan.write_interval_seconds == float("inf")
    )
    cadence.write_failed()
    assert cadence.write_due(1e12) is None


def test_one_write_is_in_flight_and_the_next_one_waits():
    cadence = SaveSchedule(Budget(every_tokens=10), now=0.0)
    cadence.snapshot_taken(10.0, 0.1, tokens=9, to_write=True)
    assert cadence.write_due(1000.0, tokens=11) is None
    cadence.write_committed(1000.0, 2.0, 0.3)
    assert cadence.write_due(1000.0, tokens=11) == "budget"
    cadence.snapshot_taken(1000.0, 0.1, tokens=9, to_write=True)
    cadence.write_committed(1002.0, 2.0, 0.3)
    assert cadence.write_due(1002.0, tokens=11) == "tokens"


def test_the_write_is_due_when_the_interval_is_over_since_the_snapshot_of_the_last():
    cadence = measured(Budget(), CHEAP, now=500.0)
    assert cadence.write_due(556.9) is None and cadence.write_due(557.0) == "budget"


def test_the_cold_first_copy_does_not_set_the_interval():
    cadence = SaveSchedule(Budget(), now=0.0)
    cadence.stepped(1.0)
    cadence.snapshot_taken(10.0, 1.9, to_write=True)
    cadence.write_committed(12.0, 2.0, 0.3)
    assert cadence.write_due(100.0) is None, "1.9 s at 1 % is one every 190 s"
    assert not cadence.snapshot_due(19.0) and cadence.snapshot_due(20.0)
    cadence.snapshot_taken(20.0, 0.1, to_write=False)
    cadence.snapshot_taken(30.0, 0.1, to_write=False)
    assert cadence.write_due(67.0) == "budget"


def test_one_odd_measurement_changes_nothing():
    cadence = measured(Budget(), CHEAP)
    before = cadence.plan
    cadence.stepped(300.0)
    cadence.snapshot_taken(0.0, 40.0, to_write=True)
    cadence.write_committed(0.0, 500.0, 100.0)
    assert cadence.plan == before


def test_costs_that_really_changed_are_followed():
    cadence = measured(Budget(), CHEAP)
    for _ in range(9):
        cadence.stepped(1.0)
        cadence.snapshot_taken(0.0, 0.9, to_write=True)
        cadence.write_committed(0.0, 2.0, 0.3)
    assert cadence.plan.write_interval_seconds == pytest.approx(90)


def test_snapshots_between_writes_come_by_what_is_left_of_the_budget():
    cadence = measured(Budget(), CHEAP)
    between = cadence.plan.snapshot_interval_seconds
    assert not cadence.snapshot_due(between - 0.01) and cadence.snapshot_due(between)
    cadence.snapshot_taken(between, 0.1, to_write=False)
    assert not cadence.snapshot_due(between + 1)
    assert cadence.write_due(57.0) == "budget", "a snapshot in memory is no write"


def test_snapshots_come_at_most_once_a_step():
    costs = Costs(stall_seconds=0.001, write_seconds=1.0, writer_cpu_seconds=0.0, step_seconds=5.0)
    assert plan(Budget(), costs).snapshot_interval_seconds == 5.0


def test_a_host_without_room_takes_no_snapshots_between():
    budget = Budget(has_snapshots=False)
    assert plan(budget, CHEAP).snapshot_interval_seconds is None
    cadence = SaveSchedule(budget, now=0.0)
    cadence.snapshot_taken(0.0, 0.1, to_write=True)
    assert not cadence.snapshot_due(1e9)


def test_minutes_and_tokens_come_besides():
    cadence = measured(Budget(max_lost_work_seconds=3600, every_minutes=2, every_tokens=1000), CHEAP)
    assert cadence.write_due(119.0, tokens=999) is None
    assert cadence.write_due(120.0, tokens=999) == "minutes" and cadence.write_due(119.0, tokens=1000) == "tokens"
    cadence.snapshot_taken(60.0, 0.1, tokens=1001, to_write=True)
    cadence.write_committed(62.0, 2.0, 0.3)
    assert cadence.write_due(179.0, tokens=1999) is None and cadence.write_due(179.0, tokens=2000) == "tokens"


def test_tokens_are_counted_from_where_the_launch_began():
    assert SaveSchedule(Budget(every_tokens=1000), now=0.0, tokens=5500).write_due(1.0, tokens=5999) is None
    assert SaveSchedule(Budget(every_tokens=1000), now=0.0, tokens=5500).write_due(1.0, tokens=6000) == "tokens"


def test_a_failed_write_is_not_tried_again_at_once():
    cadence = SaveSchedule(Budget(), now=0.0)
    cadence.snapshot_taken(10.0, 0.1, to_write=True)
    cadence.write_failed()
    assert cadence.write_due(69.0) is None and cadence.write_due(70.0) == "budget"
    cadence.snapshot_taken(70.0, 0.1, to_write=True)
    cadence.write_committed(72.0, 2.0, 0.3)
    assert cadence.write_due(128.0) == "budget"


def test_the_interval_is_said_once_and_again_when_it_changed_by_more_than_a_quarter():
    cadence = SaveSchedule(Budget(), now=0.0)
    assert cadence.news() is None
    for stall, said in [(0.1, True), (0.1, False)]:
        cadence.stepped(1.0)
        cadence.snapshot_taken(0.0, stall, to_write=True)
        cadence.write_committed(0.0, 2.0, 0.3)
        assert (cadence.news() is not None) == said
    cadence = measured(Budget(), CHEAP)
    assert cadence.news() == (
        "a checkpoint every 57 s, and a snapshot in memory every 12.1 s: a machine crash loses 60 s at most; a save costs 0.1 s of training "
        "and 2 s of writing, 1 % overhead in all"
    )
    for stall, said in [(0.65, "may lose"), (0.68, None), (0.9, "one every 90 s"), (0.75, None), (0.1, "every 57 s")]:
        for _ in range(9):
            cadence.snapshot_taken(0.0, stall, to_write=False)
        text = cadence.news()
        assert said in text if said else text is None, (stall, text)


def test_a_conflict_is_said_however_little_the_interval_changed():
    cadence = measured(Budget(), CHEAP)
    cadence.news()
    for _ in range(9):
        cadence.snapshot_taken(0.0, 0.6, to_write=False)
    assert "may lose 63 s instead of 60 s" in cadence.news() and cadence.news() is None


def test_the_meter_keeps_the_worst_moment_and_the_share_of_time():
    meter = LostWorkMeter(now=100.0)
    assert meter.overhead_fraction(100.0) == 0.0 and meter.lost_work_seconds(100.0) == 0.0
    meter.committed(moment=110.0, now=113.0)
    assert meter.lost_work_seconds(113.0) == 3.0 and meter.worst_lost_work_seconds(113.0) == 13.0
    assert meter.worst_lost_work_seconds(150.0) == 40.0
    meter.committed(moment=148.0, now=151.0)
    assert meter.worst_lost_work_seconds(152.0) == 41.0
    meter.cost(0.5)
    assert meter.overhead_fraction(200.0) == 0.005


def test_the_meter_of_a_cadence_counts_what_is_taken_from_training():
    for takes, fraction in ((False, 0.001), (True, 0.007)):
        cadence = SaveSchedule(Budget(writer_takes_from_step=takes), now=0.0)
        cadence.snapshot_taken(10.0, 0.1, to_write=True)
        cadence.write_committed(15.0, 3.0, 0.5)
        cadence.write_failed(0.1)
        assert cadence.meter.overhead_fraction(100.0) == pytest.approx(fraction)
        assert cadence.meter.lost_work_seconds(100.0) == 90.0 and cadence.meter.worst_lost_work_seconds(15.0) == 15.0


def train(budget, costs, seconds, seed=0):
    """Plays a launch with these costs and some noise; returns its cadence, the moment it ended, and how often it wrote."""
    drawn = random.Random(seed)
    noisy = lambda value: value * drawn.uniform(0.8, 1.2)  # noqa: E731
    cadence, now, done_at, num_writes = SaveSchedule(budget, 0.0), 0.0, None, 0
    while now < seconds:
        step = noisy(costs.step_seconds)
        now += step
        cadence.stepped(step)
        if done_at is not None and now >= done_at:
            cadence.write_committed(done_at, noisy(costs.write_seconds), costs.writer_cpu_seconds)
            done_at = None
        writes = cadence.write_due(now)
        if writes or cadence.snapshot_due(now):
            stall = noisy(costs.stall_seconds)
            now += stall
            cadence.snapshot_taken(now, stall, to_write=bool(writes))
            if writes:
                done_at, num_writes = now + noisy(costs.write_seconds), num_writes + 1
    return cadence, now, num_writes


def test_a_run_of_a_day_keeps_both_promises():
    cadence, now, num_writes = train(Budget(), CHEAP, 86400)
    assert 1400 < num_writes < 1560
    assert cadence.meter.worst_lost_work_seconds(now) < 62.0 and cadence.meter.overhead_fraction(now) < 0.0102


def test_a_run_of_a_day_with_dear_saves_keeps_the_overhead():
    cadence, now, num_writes = train(Budget(), DEAR, 86400)
    assert cadence.meter.overhead_fraction(now) < 0.0105 and cadence.meter.worst_lost_work_seconds(now) < 110
    assert 860 < num_writes < 1000
