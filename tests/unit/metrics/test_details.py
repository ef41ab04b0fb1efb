import pytest

from trainer.metrics.details import Details, detail_interval


def test_the_details_of_a_long_run_are_rarer():
    assert [detail_interval(None, steps) for steps in (24, 1_000_000, 14_700_000)] == [10, 10, 147]
    assert detail_interval(3, 10**9) == 3
    assert detail_interval(0, 100) == 0


def test_what_every_step_has_is_written_as_a_mean_since_the_last_look_and_at_the_first_step():
    details, found = Details(4), {}
    for step in range(3, 10):
        details.add({"time/data_seconds": float(step), **({"rare": 7.0} if step == 5 else {})})
        found[step] = details.take(step)
    assert found[3] == {"time/data_seconds": 3.0}
    assert found[4] == {"time/data_seconds": 4.0}
    assert found[8] == {"time/data_seconds": pytest.approx(6.5), "rare": 7.0}
    assert [step for step, values in found.items() if values] == [3, 4, 8]


def test_a_number_that_stays_is_written_when_it_changes_and_at_a_look():
    details, found = Details(10), []
    for step, value in ((1, 0.5), (2, 0.5), (3, 0.0), (4, 0.0), (10, 0.0), (11, 0.0)):
        if details.changed({"precision/fp8_coverage": value}, step):
            found.append(step)
        details.take(step)
    assert found == [1, 3, 10]


def test_what_is_measured_now_and_then_is_written_each_time_also_where_it_has_not_changed():
    details = Details(100)
    details.take(1)
    measured = {4: {"precision/underflow": 0.0}, 8: {"precision/underflow": 0.0}}
    assert [step for step in range(2, 12) if details.changed(measured.get(step, {}), step)] == [4, 8]
