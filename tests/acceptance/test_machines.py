"""Several machines: each has a launch of its own, the first decides, and all go on together. Played on one machine, which is all that is here."""

import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from tests.launching import PROJECT, environment, final_bytes, outcome, steps, train, write_cluster, write_recipe
from trainer.journal import read_events

pytestmark = pytest.mark.long


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Machines:
    """The launches of two machines with a process each, by one cluster file."""

    def __init__(self, folder, **changes):
        self.folder, self.recipe = folder, write_recipe(folder, **changes)
        several = {"num_machines": 2, "main_process_ip": "127.0.0.1", "main_process_port": free_port()}
        self.cluster = write_cluster(folder, 2, **several, machine_rank=0, rdzv_backend="static")
        self.launches = {}

    def start(self, rank):
        place = {"NNODES": "2", "NODE_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
        words = [sys.executable, "-m", "trainer", "launch", str(self.cluster), str(self.recipe), "restart.enabled=true"]
        log = open(self.folder / f"machine {rank}.log", "ab")
        given = {**environment(**place), "PYTHONPATH": str(PROJECT)}
        self.launches[rank] = subprocess.Popen(words, cwd=self.folder, env=given, stdout=log, stderr=log)

    def text(self):
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("machine *.log")))

    def rank_of(self, machine):
        """The process that trains on a machine."""
        below = psutil.Process(self.launches[machine].pid).children(recursive=True)
        return next(one for one in below if "RANK" in one.environ() and "train" in one.cmdline())

    def wait_for_step(self, step, seconds=120.0):
        for _ in range(int(seconds / 0.05)):
            if any(record["step"] >= step for record in steps(self.recipe)):
                return
            assert all(one.poll() is None for one in self.launches.values()), self.text()
            time.sleep(0.05)
        raise AssertionError(self.text())

    def wait(self):
        return [self.launches[rank].wait(180) for rank in sorted(self.launches)]

    def end(self):
        for one in self.launches.values():
            if one.poll() is None:
                for below in [*psutil.Process(one.pid).children(recursive=True), psutil.Process(one.pid)]:
                    below.kill()
                one.wait()


@pytest.fixture
def machines(tmp_path):
    made = Machines(tmp_path / "two", max_steps=400, checkpoint={"every_steps": 20, "keep_last": 3})
    yield made
    made.end()


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    recipe = write_recipe(
        tmp_path_factory.mktemp("straight"), max_steps=400, checkpoint={"every_steps": 20, "keep_last": 3}
    )
    train(recipe, num_processes=2)
    return final_bytes(recipe, 400)


def events(machines, *kinds):
    return read_events(machines.folder / "runs" / "tiny", *kinds)


def test_a_rank_that_is_killed_on_the_second_machine_makes_both_start_again(machines, straight):
    machines.start(1)
    machines.start(0)
    machines.wait_for_step(30)
    machines.rank_of(1).kill()
    assert machines.wait() == [0, 0], machines.text()
    assert outcome(machines.recipe)["outcome"] == "finished" and len(events(machines, "restart")) == 1
    (told,) = events(machines, "machine")
    assert told["rank"] == 1 and "SIGKILL" in told["reason"]
    assert final_bytes(machines.recipe, 400) == straight


def test_a_first_machine_that_went_down_is_waited_for(machines, straight):
    machines.start(0)
    machines.start(1)
    machines.wait_for_step(30)
    first = psutil.Process(machines.launches[0].pid)
    for one in [first, *first.children(recursive=True)]:
        one.kill()
    machines.launches[0].wait()
    psutil.wait_procs([machines.rank_of(1)] if machines.launches[1].poll() is None and has_rank(machines) else [], 60)
    machines.start(0)
    assert machines.wait() == [0, 0], machines.text()
    assert final_bytes(machines.recipe, 400) == straight


def has_rank(machines):
    try:
        return bool(machines.rank_of(1))
    except (StopIteration, psutil.Error):
        return False


def test_a_stop_reaches_every_machine(machines):
    machines.start(0)
    machines.start(1)
    machines.wait_for_step(5)
    os.kill(machines.launches[0].pid, signal.SIGTERM)
    assert machines.wait() == [75, 75], machines.text()
    assert not events(machines, "restart") and outcome(machines.recipe)["outcome"] == "interrupted"
