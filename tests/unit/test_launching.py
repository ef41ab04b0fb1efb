"""The tests' own launcher of ranks: a rank that dies alone is told in seconds, with what was printed."""

import time
from types import SimpleNamespace

import pytest

from tests import launching


def started(*bodies):
    """A run in progress whose ranks are these expressions."""
    run = object.__new__(launching.Started)
    run.output = SimpleNamespace(exists=lambda: False)
    run.ranks = [launching.server_context().Process(target=eval, args=(body,)) for body in bodies]
    for process in run.ranks:
        process.start()
    return run


SLEEPS = "__import__('time').sleep(60)"


def test_ranks_that_outlive_a_failed_one_are_ended_and_the_code_is_rank_zeros(monkeypatch):
    monkeypatch.setattr(launching, "GRACE_SECONDS", 0.5)
    began = time.monotonic()
    assert started(SLEEPS, "__import__('os')._exit(7)").wait() == -9
    assert started("__import__('os')._exit(7)", SLEEPS).wait() == 7
    assert time.monotonic() - began < 30


def test_a_run_that_does_not_end_is_ended_and_told():
    with pytest.raises(AssertionError, match=r"did not end in 0.2 s \(exit codes: \[None\]\)"):
        started(SLEEPS).wait(0.2)


def test_two_groups_never_meet_at_one_port():
    points = [launching.meeting_point(2) for _ in range(5)]
    assert len({point["MASTER_PORT"] for _, point in points}) == 5
