import subprocess
import sys

import psutil
import pytest

from trainer.safety.parent import STARTED_BY

CHILD = "import time; from trainer.safety.parent import *; {call}(); print('ready', flush=True); time.sleep(60)"
PARENT = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {child!r}], stdout=subprocess.PIPE, text=True)
print(child.pid, child.stdout.readline().strip(), flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def nobody(monkeypatch):
    """No launcher has started this process."""
    for name in (STARTED_BY, "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


def child_of_a_killed_parent(call):
    """A process that made this call, and whose parent was killed after it."""
    script = PARENT.format(child=CHILD.format(call=call))
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    pid, word = parent.stdout.readline().split()
    assert word == "ready"
    child = psutil.Process(int(pid))
    parent.kill()
    parent.wait()
    return child


def test_a_process_that_asked_for_it_ends_with_its_parent():
    child_of_a_killed_parent("end_with_parent").wait(10)


@pytest.mark.parametrize("launched", [True, False])
def test_a_rank_ends_with_its_launcher_and_a_trainer_that_a_person_started_goes_on(monkeypatch, launched):
    if launched:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    child = child_of_a_killed_parent("end_with_launcher")
    try:
        child.wait(10 if launched else 1)
        assert launched
    except psutil.TimeoutExpired:
        assert not launched
        child.kill()


def test_a_process_whose_parent_has_ended_before_it_asked_ends_at_once(monkeypatch):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    monkeypatch.setenv(STARTED_BY, str(ended.pid))
    assert subprocess.run([sys.executable, "-c", CHILD.format(call="end_with_parent")], timeout=30).returncode == -15
