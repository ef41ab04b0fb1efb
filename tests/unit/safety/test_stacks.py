import os
import signal
import subprocess
import sys
import time

import pytest

from trainer.safety.stacks import catches, gather, send_if_caught, stacks_file

WAITS = """
import sys, threading
from pathlib import Path
from trainer.safety.stacks import write_on_signal
write_on_signal(Path(sys.argv[1]), int(sys.argv[2]))
is_there = threading.Event()
def aside(): is_there.set(); threading.Event().wait()
threading.Thread(target=aside, daemon=True).start()
is_there.wait()
def deep_within(): print("there", flush=True); {stuck}
deep_within()
"""
SLEEPS = "import time; time.sleep(60)"
KEEPS_THE_GIL = "import re; re.match('(a*)*b', 'a' * 60)"
"""The engine of regular expressions lets no other thread, and no handler in Python, run meanwhile."""


@pytest.fixture
def started(tmp_path):
    processes = []

    def start(rank=0, stuck=SLEEPS):
        words = [sys.executable, "-c", WAITS.format(stuck=stuck), str(tmp_path), str(rank)]
        processes.append(subprocess.Popen(words, stdout=subprocess.PIPE, text=True))
        assert processes[-1].stdout.readline() == "there\n"
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("stuck", [SLEEPS, KEEPS_THE_GIL], ids=["sleeping", "stuck in C"])
def test_a_signal_has_every_thread_written_and_the_process_goes_on(started, tmp_path, stuck):
    process = started(stuck=stuck)
    for _ in range(2):
        found = gather(tmp_path, {0: process.pid})
        assert list(found) == [0]
        assert "deep_within" in found[0] and "aside" in found[0]
        assert found[0].count("deep_within") == 1, "of each look only its own"
    assert process.poll() is None
    assert f"process {process.pid}" in stacks_file(tmp_path, 0).read_text()


def test_a_process_that_does_not_listen_is_left_alone_and_left_out(started, tmp_path):
    listens, deaf = started(1), subprocess.Popen(["sleep", "60"])
    try:
        assert list(gather(tmp_path, {0: deaf.pid, 1: listens.pid})) == [1]
        assert not send_if_caught(deaf.pid, signal.SIGUSR1)
        time.sleep(0.1)
        assert deaf.poll() is None
    finally:
        deaf.kill()
        deaf.wait()
    assert not catches(deaf.pid, signal.SIGUSR2)


def test_a_stopped_process_writes_when_it_is_woken(started, tmp_path):
    process = started()
    os.kill(process.pid, signal.SIGSTOP)
    assert gather(tmp_path, {0: process.pid}, seconds=0.4) == {}
    assert "deep_within" in gather(tmp_path, {0: process.pid}, wake=True)[0]
