"""Every row of the table: what is done after which end."""

import configparser

import pytest

from tests.commands import trainer
from trainer.cli.guide import FOLDER
from trainer.config.unattended import RestartConfig
from trainer.ending.causes import Cause
from trainer.ending.outcomes import Outcome
from trainer.restart.decide import (
    LONGEST_WAIT_SECONDS,
    ROWS,
    Decision,
    End,
    decide,
    table,
    wait_seconds,
)

SETTINGS = RestartConfig(max=5)


def decided(outcome="failed", cause=Cause.SIGKILL, **facts):
    return decide(End(outcome=Outcome(outcome), cause=cause, words="it ended", **facts), SETTINGS)


@pytest.mark.parametrize(
    "cause",
    [
        Cause.SIGKILL,
        Cause.SIGTERM,
        Cause.SIGHUP,
        Cause.FAULT,
        Cause.EXCEPTION,
        Cause.REFUSED,
        Cause.HANG,
        Cause.DEVICE,
        Cause.CONNECTION,
        Cause.PEER,
        Cause.UNKNOWN,
        Cause.DISK,
    ],
)
def test_an_end_that_nobody_asked_for_is_gone_on_from_the_newest_checkpoint(cause):
    decision = decided(cause=cause)
    assert (decision.do, decision.wait_seconds, decision.micro_batch, decision.from_step) == (
        "restart",
        2.0,
        None,
        None,
    )
    assert decided("running", cause).do == "restart"


@pytest.mark.parametrize("outcome", ["finished", "interrupted", "diverged", "refused"])
def test_what_is_over_or_needs_a_person_is_never_started_again(outcome):
    assert decided(outcome, Cause.EXCEPTION).do == "stop"


def test_a_full_disk_is_waited_for_also_where_the_start_was_refused_for_it():
    for outcome, cause in (("failed", Cause.DISK), ("refused", Cause.NO_ROOM), ("failed", Cause.SIGKILL)):
        assert (decided(outcome, cause, lacks_room=True).do) == "wait for room"
    assert decided("refused", lacks_room=True).do == "stop", "which has another reason, and room would not help"
    assert decided("finished", lacks_room=True).do == "stop"
    assert decided("interrupted", lacks_room=True).do == "stop"


def test_what_no_figure_tells_as_a_quota_shows_at_the_next_start_which_comes_ever_later():
    waits = [decided("refused", Cause.NO_ROOM, num_stuck=number) for number in (0, 3, 9)]
    assert [(one.do, one.wait_seconds) for one in waits] == [("wait for room", seconds) for seconds in (60, 128, 600)]
    assert decided("refused", Cause.NO_ROOM, has_saved=False).do == "stop", "whoever starts it is there"


def test_a_run_that_never_comes_further_is_given_up_however_seldom_it_fails():
    assert decided(num_stuck=4).do == "restart"
    assert decided(num_stuck=5).do == "stop"


def test_a_broken_disk_is_tried_three_times():
    assert [decided(cause=Cause.DISK, num_stuck=number).do for number in range(3)] == ["restart", "restart", "stop"]


@pytest.mark.parametrize("cause", [Cause.EXCEPTION, Cause.FAULT, Cause.REFUSED])
def test_the_same_failure_goes_to_an_older_checkpoint_and_then_ends(cause):
    assert decided(cause=cause, num_same=1, older_step=30).from_step is None
    assert decided(cause=cause, num_same=2, older_step=30) == Decision(
        "restart", decided(cause=cause, num_same=2, older_step=30).why, 2.0, from_step=30
    )
    assert decided(cause=cause, num_same=2).from_step is None
    assert decided(cause=cause, num_same=3, older_step=30).do == "stop"
    assert decided(cause=Cause.SIGKILL, num_same=3).do == "restart"


def test_out_of_memory_halves_the_micro_batch_until_there_is_nothing_to_halve():
    assert (
        decided(cause=Cause.OUT_OF_MEMORY, micro_batch=8).do,
        decided(cause=Cause.OUT_OF_MEMORY, micro_batch=8).micro_batch,
    ) == ("restart", 4)
    assert decided(cause=Cause.OUT_OF_MEMORY, micro_batch=1).do == "stop"
    assert decided("refused", Cause.OUT_OF_MEMORY, micro_batch=8).micro_batch == 4, "the preflight meets it first"
    assert decided("refused", Cause.OUT_OF_MEMORY, micro_batch=1).do == "stop"


def test_it_gives_up_after_as_many_restarts_as_the_window_allows():
    assert decided(num_restarts=4).do == "restart"
    assert decided(num_restarts=5).do == "stop"


def test_the_wait_grows_without_progress_and_is_bounded():
    assert [wait_seconds(number) for number in range(4)] == [2.0, 8.0, 32.0, 128.0]
    assert wait_seconds(9) == wait_seconds(1000) == LONGEST_WAIT_SECONDS


def test_every_row_stands_in_the_guide():
    assert all(row.name in table() and row.is_done in table() for row in ROWS)
    assert table() in (FOLDER / "unattended.md").read_text(encoding="utf-8")


def test_the_unit_for_systemd_is_one():
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read_string(trainer("guide", "--systemd").out)
    service = unit["Service"]
    assert set(unit.sections()) == {"Unit", "Service", "Install"}
    assert service["ExecStart"].split()[0].endswith("/launch.sh")
    assert service["Restart"] == "on-abnormal", "no exit code, and so neither a run that was given up, is started again"
    assert service["OOMPolicy"] == "continue", (
        "or a rank that is killed for memory ends the supervisor, as if it were asked to stop"
    )
    assert service["KillSignal"] == "SIGTERM" and service["KillMode"] == "mixed"


@pytest.mark.parametrize(("size", "smaller"), [(8, 4), (2, 1), (6, 3), (9, 3), (7, 1)])
def test_a_smaller_micro_batch_divides_the_larger_so_that_the_global_batch_stays(size, smaller):
    end = End(outcome=Outcome.FAILED, cause=Cause.OUT_OF_MEMORY, words="", micro_batch=size)
    assert decide(end, RestartConfig()).micro_batch == smaller
