import os
import signal

import pytest

from tests.messages import says
from trainer.safety import stop as stop_module
from trainer.safety.stop import StopRequest


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(stop_module.time, "monotonic", lambda: now[0])
    return now


def raise_here(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_becomes_a_vote_and_a_reason(clock, number):
    with StopRequest() as stop:
        assert stop.vote == 0.0
        assert stop.reason is None
        raise_here(number)
        assert stop.vote == 1.0
        assert stop.reason == f"{number.name} was received"


def test_a_signal_that_a_launcher_repeats_is_no_news(clock):
    with StopRequest() as stop:
        raise_here(signal.SIGINT)
        clock[0] += 4.0
        raise_here(signal.SIGINT)
        clock[0] += 400.0
        raise_here(signal.SIGTERM)
        says(stop.reason, "SIGINT")


def test_ctrl_c_pressed_again_after_a_while_ends_at_once(clock):
    with pytest.raises(KeyboardInterrupt), StopRequest():
        raise_here(signal.SIGTERM)
        clock[0] += 6.0
        raise_here(signal.SIGINT)


def test_the_handlers_of_before_come_back():
    before = [signal.getsignal(number) for number in StopRequest.SIGNALS]
    with StopRequest():
        assert [signal.getsignal(number) for number in StopRequest.SIGNALS] != before
    assert [signal.getsignal(number) for number in StopRequest.SIGNALS] == before
