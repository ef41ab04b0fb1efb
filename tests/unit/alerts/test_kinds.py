"""Which events are told, and that of a launch's ends one is."""

from typing import get_args

import pytest

from trainer.alerts.kinds import Told
from trainer.config.unattended import AlertKind
from trainer.ending.causes import Cause


def kinds(*events):
    told = Told()
    return [alert.kind for event in events for alert in told.of(event)] + [alert.kind for alert in told.rest()]


def stop(cause, **facts):
    return {"event": "stop", "cause": str(cause), "step": 3, "reason": "r", **facts}


LAUNCH = {"event": "launch", "command": "c"}


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        ({"event": "restart"}, "restart"),
        ({"event": "gave_up"}, "gave_up"),
        ({"event": "hang"}, "hang"),
        ({"event": "rollback"}, "rollback"),
        ({"event": "digest_differs"}, "hardware"),
        ({"event": "recompute", "equal": False}, "hardware"),
        ({"event": "recompute", "equal": True}, None),
        ({"event": "waiting", "what": "gpus"}, "waiting"),
        ({"event": "waiting", "what": "room"}, "disk"),
        ({"event": "save_failed"}, "disk"),
        ({"event": "mirror", "failure": "x"}, "disk"),
        ({"event": "mirror"}, None),
        ({"event": "precision", "mode": "bf16"}, "precision"),
        ({"event": "precision", "mode": "bf16", "resumed": True}, None),
        ({"event": "start", "precision": "bf16", "instead_of": "fp8"}, "precision"),
        ({"event": "start", "precision": "bf16"}, None),
        ({"event": "slow"}, "slow"),
        ({"event": "save"}, None),
        ({"event": "of a later version"}, None),
        (stop(Cause.FINISHED), "finished"),
        (stop(Cause.DIVERGED), "diverged"),
        (stop(Cause.DISK), "disk"),
        (stop(Cause.INTERRUPTED), None),
        (stop(Cause.SIGINT), None),
        (stop(Cause.HANG), None),
        (stop(Cause.ROLLBACK), None),
        (stop(Cause.REFUSED), "crash"),
        (stop(Cause.SIGKILL), "crash"),
        (stop(Cause.EXCEPTION), "crash"),
        (stop(Cause.UNKNOWN), "crash"),
        (stop("of a later version"), "crash"),
        ({"event": "stop"}, "crash"),
    ],
)
def test_each_event_is_told_as_what_it_is(event, kind):
    assert kinds(event) == ([kind] if kind else [])
    assert kind is None or kind in get_args(AlertKind)


def test_of_the_processes_of_a_launch_one_end_is_told_and_first_hands_know_better():
    told = Told()
    assert not list(told.of(stop(Cause.PEER)))
    (alert,) = told.of(stop(Cause.OUT_OF_MEMORY))
    assert alert.event["cause"] == Cause.OUT_OF_MEMORY
    assert not [*told.of(stop(Cause.PEER)), *told.of(stop(Cause.EXCEPTION)), *told.rest()]


def test_an_end_that_only_second_hands_tell_is_told_once_nothing_better_can_come():
    told = Told()
    assert not list(told.of(stop(Cause.PEER)))
    assert [alert.kind for alert in told.of({"event": "restart"})] == ["crash", "restart"]
    assert not list(told.rest())
    assert kinds(stop(Cause.UNKNOWN)) == ["crash"]


def test_each_launch_has_an_end_of_its_own():
    crash = stop(Cause.EXCEPTION)
    assert kinds(LAUNCH, crash, {"event": "restart"}, crash, LAUNCH, crash) == ["crash", "restart", "crash", "crash"]
    assert kinds(crash, {"event": "gave_up"}, stop(Cause.PEER)) == ["crash", "gave_up"]
