from hypothesis import assume, given
from hypothesis import strategies as st

from tests.messages import says
from trainer.checkpoint.save.schedule import Budget, Costs, SaveSchedule, conflict, plan

seconds = st.floats(0, 1e4)
budgets = st.builds(
    Budget,
    max_lost_work_seconds=st.floats(0.1, 1e5),
    max_overhead_fraction=st.floats(1e-4, 1),
    writer_takes_from_step=st.booleans(),
    has_snapshots=st.booleans(),
)
all_costs = st.builds(
    Costs, stall_seconds=seconds, write_seconds=seconds, writer_cpu_seconds=seconds, step_seconds=seconds
)


@given(budgets, all_costs)
def test_overhead_is_never_exceeded(budget, costs):
    assert plan(budget, costs).overhead_fraction <= budget.max_overhead_fraction * (1 + 1e-9)


@given(budgets, all_costs)
def test_the_loss_is_kept_or_the_conflict_is_said_with_figures(budget, costs):
    planned, text = plan(budget, costs), conflict(budget, costs)
    assert (planned.lost_work_seconds <= 1.01 * budget.max_lost_work_seconds) == (text is None)
    if text:
        says(text, "machine", "checkpoint.max_lost_work_seconds")


@given(budgets, all_costs)
def test_writes_do_not_overlap_and_come_no_more_often_than_steps_and_snapshots_come_between_them(budget, costs):
    planned = plan(budget, costs)
    assert planned.write_interval_seconds >= max(costs.write_seconds, costs.step_seconds)
    between = planned.snapshot_interval_seconds
    assert between is None or costs.step_seconds <= between < planned.write_interval_seconds


@given(budgets, all_costs, st.floats(1, 10))
def test_a_larger_overhead_never_makes_the_interval_longer(budget, costs, factor):
    more = min(1.0, budget.max_overhead_fraction * factor)
    roomier = Budget(budget.max_lost_work_seconds, more, writer_takes_from_step=budget.writer_takes_from_step)
    assert plan(roomier, costs).write_interval_seconds <= plan(budget, costs).write_interval_seconds


@given(st.floats(-1e9, 1e9), st.lists(st.tuples(st.floats(0, 100), st.floats(0, 5)), max_size=30), budgets)
def test_only_differences_of_the_clock_matter(shift, events, budget):
    assume(abs(shift) < 1e6)
    told = []
    for start in (0.0, float(round(shift))):
        cadence, now, decisions = SaveSchedule(budget, start), start, []
        for pause, stall in events:
            now += round(pause * 4) / 4  # binary fractions: the sums are exact wherever they start
            cadence.stepped(1.0)
            due = cadence.write_due(now)
            decisions.append((due, cadence.snapshot_due(now), cadence.news()))
            cadence.snapshot_taken(now, stall, to_write=due is not None)
            if due:
                cadence.write_committed(now, stall, stall)
        decisions.append((cadence.meter.worst_lost_work_seconds(now), cadence.meter.overhead_fraction(now)))
        told.append(decisions)
    assert told[0] == told[1]
