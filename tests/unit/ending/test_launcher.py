import os

import pytest

from tests.messages import says
from trainer.ending.launcher import FAILURE_PIPE, ProcessFailure, how_it_ended, receive_failure, send_failure


def test_what_a_launcher_saw_reaches_the_one_that_started_it(monkeypatch):
    here, there = os.pipe()
    assert receive_failure(here) is None
    monkeypatch.setenv(FAILURE_PIPE, str(there))
    send_failure(ProcessFailure(1, 77, -9))
    assert receive_failure(here) == ProcessFailure(1, 77, -9)
    os.close(there)
    assert receive_failure(here) is None
    os.close(here)
    monkeypatch.delenv(FAILURE_PIPE)
    send_failure(ProcessFailure(1, 77, -9))  # a launcher that nobody listens to


@pytest.mark.parametrize(
    ("exit_code", "words"),
    [
        (-9, ["SIGKILL", "out of memory"]),
        (-15, ["SIGTERM", "start it again"]),
        (-40, ["signal 40"]),
        (1, ["exit code 1"]),
    ],
)
def test_how_a_process_ended_is_said_in_words(exit_code, words):
    says(how_it_ended("rank 0", exit_code), "rank 0", *words)
