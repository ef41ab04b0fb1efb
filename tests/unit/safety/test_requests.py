import os
import signal
from dataclasses import replace

import pytest

from tests.messages import says
from trainer.journal import read_events
from trainer.safety import request_file
from trainer.safety import requests as requests_module
from trainer.safety.request_file import REQUEST, Asked
from trainer.safety.requests import Requests
from trainer.safety.time_limit import TimeLimit

ALL = (*Requests.STOPS, signal.SIGUSR1)


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(requests_module.time, "monotonic", lambda: now[0])
    return now


def raise_here(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_becomes_a_vote_and_a_reason(clock, number):
    with Requests() as asked:
        assert asked.stop_vote == 0.0
        assert asked.stop_reason is None
        raise_here(number)
        assert asked.stop_vote == 1.0
        assert asked.stop_reason == f"{number.name} was received"


def test_a_signal_that_a_launcher_repeats_is_no_news(clock):
    with Requests() as asked:
        raise_here(signal.SIGINT)
        clock[0] += 4.0
        raise_here(signal.SIGINT)
        clock[0] += 400.0
        raise_here(signal.SIGTERM)
        says(asked.stop_reason, "SIGINT")


def test_ctrl_c_pressed_again_after_a_while_ends_at_once(clock):
    with pytest.raises(KeyboardInterrupt), Requests():
        raise_here(signal.SIGTERM)
        clock[0] += 6.0
        raise_here(signal.SIGINT)


def test_the_handlers_of_before_come_back():
    before = [signal.getsignal(number) for number in ALL]
    with Requests():
        assert [signal.getsignal(number) for number in ALL] != before
    assert [signal.getsignal(number) for number in ALL] == before


def test_sigusr1_asks_for_a_save_once_and_no_stop(clock):
    with Requests() as asked:
        raise_here(signal.SIGUSR1)
        assert (asked.save_vote, asked.stop_vote, asked.pins) == (1.0, 0.0, False)
        asked.answer_saves(3, is_saved=True)
        assert asked.save_vote == 0.0
        raise_here(signal.SIGUSR1)
        assert asked.save_vote == 0.0, "the launcher sends it to every rank, and one hears it late"
        clock[0] += 1.0
        raise_here(signal.SIGUSR1)
        assert asked.save_vote == 1.0


def test_what_lies_in_the_folder_is_taken_once_and_answered_in_the_journal(tmp_path):
    asked, mine, late = Requests(tmp_path), Asked("save", pin=True), Asked("stop")
    asked.look(1)
    assert (asked.save_vote, asked.stop_vote) == (0.0, 0.0)
    request_file.leave(tmp_path, mine)
    asked.look(2)
    assert not (tmp_path / REQUEST).exists()
    assert (asked.save_vote, asked.stop_vote, asked.pins) == (1.0, 0.0, True)
    assert read_events(tmp_path) == []
    asked.answer_saves(3, is_saved=True)
    request_file.leave(tmp_path, late)
    asked.look(4)
    assert (asked.save_vote, asked.stop_vote, asked.pins) == (0.0, 1.0, False)
    assert late.by in asked.stop_reason
    told = [(event["do"], event["step"], event["id"], event.get("saved")) for event in read_events(tmp_path, "request")]
    assert told == [("save", 3, mine.id, True), ("stop", 4, late.id, None)]


def test_a_request_that_cannot_be_removed_is_answered_once(tmp_path, monkeypatch):
    asked = Requests(tmp_path)
    request_file.leave(tmp_path, Asked("save"))
    monkeypatch.setattr(request_file, "withdraw", lambda folder, asked=None: False)
    asked.look(1)
    asked.answer_saves(1, is_saved=True)
    asked.look(2)
    assert asked.save_vote == 0.0


def test_what_is_no_request_is_removed_and_said(tmp_path, caplog):
    for content in ("{", "[]", '{"do": "save", "why": 1}'):
        (tmp_path / REQUEST).write_text(content)
        assert request_file.look(tmp_path) is None
        assert not (tmp_path / REQUEST).exists()
    assert len(caplog.messages) == 3


def test_only_ones_own_request_is_taken_back(tmp_path):
    mine = Asked("stop")
    assert not request_file.withdraw(tmp_path, mine)
    request_file.leave(tmp_path, mine)
    assert not request_file.withdraw(tmp_path, replace(mine, id="another"))
    assert request_file.withdraw(tmp_path, mine)
    request_file.leave(tmp_path, mine)
    assert request_file.withdraw(tmp_path) and not (tmp_path / REQUEST).exists()


def test_the_limit_leaves_time_for_the_longest_step_and_the_save():
    limit = TimeLimit(1.0, began=100.0)  # until 3700, of which 30 s are for closing down
    assert not limit.is_near(1000.0)
    assert not limit.is_near(1900.0), "what the first step compiles is no measure"
    assert not limit.is_near(1950.0)
    times = [1950.0 + 50.0 * number for number in range(1, 40)]
    assert (
        next(now for now in times if limit.is_near(now, save_seconds=20.0)) == 3550.0
    )  # 3700 - 30 - 2 x 50 - 2 x 20 = 3530
    assert TimeLimit(0.01, began=0.0)._slack == pytest.approx(1.8)


def test_the_limit_is_a_reason_to_stop_and_asks_what_a_save_takes(clock):
    asked = Requests(limit=TimeLimit(0.01, began=70.0))  # until 106
    asked.look(1, lambda: 1.0)
    assert asked.stop_vote == 0.0
    asked.look(1, lambda: 3.0)
    assert asked.stop_vote == 1.0
    says(asked.stop_reason, "max_hours", "0.01")


@pytest.mark.parametrize("content", ['{"do": "stop", "by": "me", "id": "1"}', "no request"])
def test_a_request_that_cannot_be_removed_ends_no_run_and_is_answered_once(tmp_path, monkeypatch, content):
    """In a folder with the sticky bit only its owner may."""

    def unlink(self, missing_ok=False):
        raise PermissionError(1, "Operation not permitted")

    (tmp_path / REQUEST).write_text(content)
    monkeypatch.setattr("pathlib.Path.unlink", unlink)
    asked = Requests(tmp_path)
    for step in (1, 2):
        asked.look(step)
    assert asked.stop_vote == float(content != "no request")
    assert len(read_events(tmp_path, "request")) == int(content != "no request")
