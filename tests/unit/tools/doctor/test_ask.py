"""Processes that die of a question, and what becomes of the others; what is asked of the real one stands in tests/acceptance."""

import sys

import pytest

from tests.messages import says
from trainer.tools.doctor import ask as asking
from trainer.tools.doctor.ask import ask

CHILD = """
import json, os, signal, sys, time
pipe, request = int(sys.argv[1]), json.load(sys.stdin)
for question in request["questions"]:
    if question == "segfault": print("a\\nlast line", file=sys.stderr); sys.stderr.flush(); os.kill(os.getpid(), signal.SIGSEGV)
    if question == "half": os.write(pipe, b'["half", {"a"'); os._exit(3)
    if question == "hang": time.sleep(60)
    if question == "exit": sys.exit()
    answer = {"pid": os.getpid(), "asked": request["asked"], "rank": os.environ.get("RANK"), "mine": os.environ.get("MINE")}
    os.write(pipe, (json.dumps([question, answer]) + "\\n").encode())
    if question == "enough": break
"""


@pytest.fixture(autouse=True)
def child(monkeypatch):
    """The process that is asked, without torch: answers but for a few questions."""
    monkeypatch.setattr(asking, "COMMAND", (sys.executable, "-c", CHILD))


def test_one_process_answers_all_it_can():
    answers = ask(("a", "b"), {"words": 1}, {"MINE": "yes", "RANK": "1"})
    assert answers["a"] == answers["b"]
    assert answers["a"]["asked"] == {"words": 1}
    assert (answers["a"]["mine"], answers["a"]["rank"]) == ("yes", None)


def test_a_death_is_the_answer_to_one_question_and_another_process_takes_the_rest():
    answers = ask(("a", "segfault", "b", "half", "c"), None, {})
    says(answers["segfault"]["problem"], "SIGSEGV", "last line")
    says(answers["half"]["problem"], "exit code 3")
    assert len({answers[question]["pid"] for question in "abc"}) == 3


def test_a_process_that_ends_after_an_answer_is_not_blamed():
    answers = ask(("enough", "b"), None, {})
    assert "problem" not in answers["b"]
    assert answers["enough"]["pid"] != answers["b"]["pid"]


def test_a_process_that_ends_without_any_answer_is():
    says(ask(("exit", "b"), None, {})["exit"]["problem"], "exit code 0")


def test_a_process_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr(asking, "PATIENCE_SECONDS", 1.0)
    answers = ask(("a", "hang", "b"), None, {})
    says(answers["hang"]["problem"], "1s")
    assert "pid" in answers["b"]
