"""A launch is killed whole, and its writer only when it is meant."""

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.messages import refuses
from trainer.errors import LaunchError
from trainer.journal import Journal
from trainer.tools.trial.tracked import TrackedLaunch, last_step

LAUNCH = """
import json, os, subprocess, sys, time
folder = sys.argv[1]
sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
rank, writer = (subprocess.Popen([*sleep, word], start_new_session=True) for word in ("rank", "trainer.checkpoint.save.writer"))
open(f"{folder}/pids", "w").write(f"{os.getpid()} {rank.pid} {writer.pid}")
for step in range(1, 1000):
    with open(f"{folder}/metrics.jsonl", "a") as curve:
        curve.write(json.dumps({"step": step}) + "\\n")
    time.sleep(0.01)
"""
"""A launcher with a rank and a writer, each in a session of its own, as torch's agent and the trainer start them."""


@dataclass
class Launch:
    folder: Path
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)


@pytest.fixture
def launch(tmp_path):
    return Launch(tmp_path, [sys.executable, "-c", LAUNCH, str(tmp_path)])


def started(launch):
    victim = TrackedLaunch(launch, launch.folder / "log", limit_seconds=60)
    assert victim.wait_for_step(3)
    return victim, [psutil.Process(int(pid)) for pid in (launch.folder / "pids").read_text().split()]


def lives(process):
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("with_writer", [False, True])
def test_a_kill_ends_every_process_and_the_writer_only_when_it_is_meant(launch, with_writer):
    victim, (launcher, rank, writer) = started(launch)
    assert victim.kill(with_writer=with_writer) is with_writer
    psutil.wait_procs([launcher, rank], timeout=5)
    assert not lives(launcher)
    assert not lives(rank)
    psutil.wait_procs([writer], timeout=5 if with_writer else 0.2)
    assert lives(writer) is not with_writer
    victim.clear_away()
    assert not lives(writer)


def test_what_is_cleared_away_leaves_nothing_behind(launch):
    victim, processes = started(launch)
    victim.clear_away()
    psutil.wait_procs(processes, timeout=5)
    assert not any(lives(process) for process in processes)


def test_a_launch_that_ends_before_the_step_is_not_waited_for(tmp_path):
    victim = TrackedLaunch(
        Launch(tmp_path, [sys.executable, "-c", "print('so much')"]), tmp_path / "log", limit_seconds=60
    )
    assert not victim.wait_for_step(5)
    assert victim.wait() == 0
    assert (tmp_path / "log").read_text() == "so much\n"


def test_a_resume_is_seen_in_the_journal_and_not_the_one_before(tmp_path):
    Journal(tmp_path).write("resume", step=3)
    victim = TrackedLaunch(
        Launch(tmp_path, [sys.executable, "-c", "import time; time.sleep(0.5)"]), tmp_path / "log", limit_seconds=60
    )
    assert victim.wait_for_resume(reached=5) is None
    assert victim.seconds >= 0.5
    script = f"from trainer.journal import Journal; from pathlib import Path; Journal(Path({str(tmp_path)!r})).write('resume', step=6); import time; time.sleep(60)"
    victim = TrackedLaunch(
        Launch(tmp_path, [sys.executable, "-c", script], {"PYTHONPATH": ":".join(sys.path)}),
        tmp_path / "log",
        limit_seconds=60,
    )
    assert 0 < victim.wait_for_resume(reached=7) < 30
    victim.clear_away()


def test_the_last_step_is_that_of_the_last_whole_line(tmp_path):
    assert last_step(tmp_path) == 0
    curve = tmp_path / "metrics.jsonl"
    curve.write_text(
        "".join(json.dumps({"step": step, "more": "x" * 90}) + "\n" for step in range(1, 500)) + '{"step": 500}'
    )
    began = time.perf_counter()
    assert last_step(tmp_path) == 499
    assert time.perf_counter() - began < 0.1


def test_a_launch_that_hangs_is_told_after_its_time_with_where_it_stands(launch):
    hanging = Launch(
        launch.folder, [sys.executable, "-c", LAUNCH.replace("range(1, 1000)", "range(1, 4)") + "time.sleep(60)"]
    )
    hanging.command.append(str(launch.folder))
    victim = TrackedLaunch(hanging, launch.folder / "log", limit_seconds=2)
    assert victim.wait_for_step(3)
    for wait in (victim.wait, lambda: victim.wait_for_step(4), lambda: victim.wait_for_resume(9)):
        with refuses(LaunchError, "step 3", "2s", launch.folder / "log") as caught:
            wait()
        assert caught.value.exit_code == 1
    victim.clear_away()
