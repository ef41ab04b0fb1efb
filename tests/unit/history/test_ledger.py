"""What happened to a run, from journals that were made up."""

from datetime import timedelta

import pytest

from tests.written_history import BEGAN, EVENTS, at, event, start
from trainer.history.ledger import MAX_POINTS, ledger_of


def ledger(*events, **facts):
    return ledger_of(events, **{"now": None, **facts})


def ends(found):
    return [(launch.cause, launch.step) for launch in found.launches]


def test_each_launch_ends_by_the_first_that_knew_why():
    found = ledger(*EVENTS)
    assert ends(found) == [("SIGKILL", 43), ("hang", 97), ("exception", None), ("interrupted", 150), ("finished", 200)]
    assert [launch.words for launch in found.launches][0] == "rank 1 was killed by SIGKILL (out of memory?)"
    assert found.launches[0].at == at(1600)
    assert found.wall_seconds == 11300
    assert found.began_at == at(0)


def test_the_time_goes_to_where_it_went():
    found = ledger(*EVENTS)
    assert found.start_seconds == 40 + 50 + 40 + 60 + 50
    assert found.down_seconds(asked_for=False) == 10 + 10 + 10
    assert found.down_seconds(asked_for=True) == 3600
    assert (found.lost_steps, found.lost_seconds) == (5 + 1, 180)
    assert found.process_seconds == 4 * (11300 - 3600 - 30)


def test_what_was_lost_counts_for_the_end_that_lost_it_and_not_for_one_before_the_first_step():
    by_cause = {cost.cause: cost for cost in ledger(*EVENTS).costs}
    assert by_cause.keys() == {"SIGKILL", "hang", "exception", "rollback"}
    assert {cause: cost.lost_steps for cause, cost in by_cause.items()} == {
        "SIGKILL": 3,
        "hang": 2,
        "exception": 0,
        "rollback": 1,
    }
    assert by_cause["exception"].start_seconds == 60
    assert by_cause["hang"].seconds == 72 + 10 + 40


def test_what_a_rollback_undid_is_lost_whether_the_processes_go_on_or_not():
    back = event(100, "rollback", from_step=30, to_step=20, reason="it diverged")
    again = {"lost_steps": 9, "lost_seconds": 95.0, "worst_seconds": 0.0}
    untold = ledger(*start(0, 10), back, step_seconds=10.0)
    assert (untold.lost_steps, untold.lost_seconds) == (10, 100)
    in_place = ledger(*start(0, 10), back, event(101, "train", step=20, **again), step_seconds=10.0)
    assert [(cost.cause, cost.stops, cost.lost_steps, cost.lost_seconds) for cost in in_place.costs][0] == (
        "rollback",
        1,
        9,
        95.0,
    )
    assert in_place.launches[0].trains_since == 10
    stop = event(101, "stop", cause="rollback", step=30)
    anew = ledger(
        *start(0, 10), back, stop, event(110, "start"), event(120, "train", step=20, **again), step_seconds=10.0
    )
    assert (anew.lost_steps, anew.lost_seconds, anew.launches[0].lost_steps) == (9, 95, 9)


def test_resumes_have_their_verdicts():
    found = ledger(*EVENTS)
    assert [launch.resumed_at for launch in found.resumes] == [40, 95, 150]
    assert found.exactness == (1, 1)
    assert ledger(
        *EVENTS, event(11301, "start"), event(11302, "verdict", exact=False, text="resume NOT exact")
    ).exactness == (1, 2)


def test_what_the_guard_did_is_kept_as_it_was_written():
    found = ledger(*EVENTS)
    assert [skip["step"] for skip in found.events["bad_batch"]] == [64]
    assert [len(found.events[kind]) for kind in ("recompute", "rollback", "hang", "restart")] == [1, 1, 1, 3]


def test_a_launch_that_ended_without_a_word_ends_with_its_last_sign():
    begun = start(0, 10)
    found = ledger(*begun, event(50, "save", step=3), event(900, "launch"), *start(910, 930, step=3, lost=2))
    assert ends(found)[0] == ("unknown", None)
    assert found.launches[0].ended == 50
    assert found.down_seconds(asked_for=False) == 850
    assert found.costs[0].lost_steps == 2
    assert ledger(*begun, last_sign=BEGAN + timedelta(seconds=70)).wall_seconds == 70


def test_a_run_that_is_alive_goes_on_until_now():
    found = ledger(*start(0, 10), now=BEGAN + timedelta(seconds=300))
    assert found.wall_seconds == 300
    assert found.launches[0].ended is None
    assert found.process_seconds == 1200


def test_the_supervisors_word_counts_where_the_launch_left_none():
    restart = event(
        60, "restart", attempt=1, cause="SIGKILL", step=7, wait_seconds=5.0, words="the launcher was killed"
    )
    found = ledger(*start(0, 10), event(50, "save", step=5), restart, *start(65, 80, step=5, lost=2))
    assert ends(found)[0] == ("SIGKILL", 7)
    assert found.launches[0].ended == 60
    known = [event(40, "stop", cause="disk", step=4, reason="full")]
    assert ends(ledger(*start(0, 10), *known, restart))[0] == ("disk", 4)


@pytest.mark.parametrize("told_at", [52, 58], ids=["before the wait", "after it, as an earlier version"])
def test_a_start_begins_after_the_wait_before_it(told_at):
    stop = event(50, "stop", cause="exception", step=5, reason="no")
    restart = event(told_at, "restart", attempt=1, cause="exception", step=5, wait_seconds=8.0, words="again")
    found = ledger(*start(0, 10), stop, restart, *start(65, 80, step=5))
    assert (found.down_seconds(asked_for=False), found.launches[1].began) == (8, 58)
    longer = event(60, "waiting", what="room")
    assert ledger(*start(0, 10), stop, restart, longer, *start(65, 80, step=5)).launches[1].began == 65


def test_a_journal_of_an_earlier_version_says_what_was_lost_as_well_as_it_can():
    old = [
        event(0, "start"),
        event(100, "save", step=10),
        event(130, "stop", cause="SIGKILL", step=13, reason="killed"),
    ]
    found = ledger(
        *old, event(140, "start"), event(150, "resume", step=10), event(150, "stop", cause="refused"), step_seconds=10.0
    )
    assert (found.lost_steps, found.lost_seconds) == (3, 30)
    assert found.start_seconds == 10 + 0


@pytest.mark.parametrize("jump", [-5000, -100])
def test_a_clock_that_is_set_back_takes_no_time_away(jump):
    found = ledger(
        *start(0, 10),
        event(100, "save", step=1),
        event(100 + jump, "save", step=2),
        event(150 + jump, "stop", cause="finished", step=2),
    )
    assert found.wall_seconds == 150


def test_a_month_of_saves_is_thinned_and_spans_all_of_it():
    begun = start(0, 10)
    found = ledger_of(
        (*begun, *(event(10 + n, "save", step=n, seconds=1.0) for n in range(1, 4 * MAX_POINTS))), now=None
    )
    assert found.num_saves == 4 * MAX_POINTS - 1
    assert MAX_POINTS / 3 < len(found.saves) <= MAX_POINTS
    steps = [save.step for save in found.saves]
    assert len({after - before for before, after in zip(steps, steps[1:])}) == 1, "they are spread evenly"
    assert steps[0] < 16 and steps[-1] > 4 * MAX_POINTS - 16


def test_events_that_are_damaged_or_before_any_start_do_no_harm():
    odd = [
        {"event": "stop"},
        {"event": "save", "time": "yesterday"},
        {"event": "start", "time": 3, "processes": "many"},
        {"event": "new thing"},
    ]
    found = ledger(*odd)
    assert ends(found) == [("unknown", None)]
    assert found.wall_seconds == 0


def test_numbers_and_times_that_are_damaged_do_no_harm():
    spoiled = [{**one, "lost_steps": "many", "wait_seconds": None, "seconds": [], "from_step": "x"} for one in EVENTS]
    spoiled[3]["time"] = spoiled[3]["time"].removesuffix("+00:00")
    found = ledger(*spoiled)
    assert found.lost_steps == 0 and found.wall_seconds == ledger(*EVENTS).wall_seconds
