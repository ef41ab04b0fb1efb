"""Ranks that wait for each other within a GPU: one that fails ends the others by its reason, and is itself gone after a while."""

import os
import signal
import threading
import time

import pytest

from trainer.ending.ranks import leave_failure, read_failure, withdraw_failure
from trainer.errors import RankLostError
from trainer.safety import peers


@pytest.fixture
def become(monkeypatch):
    """Makes this process a rank of a group of three; looks and patience are short."""
    monkeypatch.setattr(peers, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(peers, "GRACE_SECONDS", 0.05)
    for name, value in {"WORLD_SIZE": "3", "MASTER_ADDR": "here", "MASTER_PORT": "1234"}.items():
        monkeypatch.setenv(name, value)
    return lambda rank: monkeypatch.setenv("RANK", str(rank))


def ended_by(folder, seconds=5.0):
    """The error by which this rank is ended while it waits; None when it waits to the end."""
    errors, ended = [], threading.Event()
    with peers.ended_with_peers(folder, lambda error: (errors.append(error), ended.set())):
        ended.wait(seconds)
    return errors[0] if errors else None


def test_a_rank_that_waits_in_a_gpu_ends_with_the_reason_of_the_one_that_failed(tmp_path, become, monkeypatch):
    monkeypatch.setattr(peers, "waits_in_gpu", lambda: True)
    become(2)
    leave_failure(tmp_path, "failed", "a bad shard")
    become(0)
    error = ended_by(tmp_path)
    assert isinstance(error, RankLostError)
    assert (str(error), error.outcome, error.was_said) == (
        "rank 2: a bad shard",
        "failed",
        True,
    )


@pytest.mark.parametrize(("in_gpu", "port"), [(False, "1234"), (True, "9999")])
def test_one_that_waits_on_the_host_or_belongs_to_another_launch_is_left_alone(
    tmp_path, become, monkeypatch, in_gpu, port
):
    monkeypatch.setattr(peers, "waits_in_gpu", lambda: in_gpu)
    become(2)
    leave_failure(tmp_path, "failed", "a bad shard")
    become(0)
    monkeypatch.setenv("MASTER_PORT", port)
    assert ended_by(tmp_path, 0.3) is None


def test_what_is_withdrawn_before_the_ranks_have_met_ends_none(tmp_path, become, monkeypatch):
    become(2)
    leave_failure(tmp_path, "failed", "an earlier launch")

    def meet():
        withdraw_failure(tmp_path)
        return True

    monkeypatch.setattr(peers, "failure_of_others", lambda folder: read_failure(folder, 2))
    monkeypatch.setattr(peers, "waits_in_gpu", meet)
    assert ended_by(tmp_path, 0.3) is None


def test_one_that_ends_by_itself_in_time_is_left_alone(tmp_path, become, monkeypatch):
    monkeypatch.setattr(peers, "waits_in_gpu", lambda: True)
    monkeypatch.setattr(peers, "GRACE_SECONDS", 0.2)
    become(2)
    leave_failure(tmp_path, "failed", "a bad shard")
    become(0)
    assert ended_by(tmp_path, 0.1) is None
    time.sleep(0.3)


@pytest.mark.parametrize(
    ("backends", "world_size", "waits"),
    [("cuda:nccl", 2, True), ("cuda:nccl", 1, False), ("cpu:gloo,cuda:gloo", 2, False)],
)
def test_ranks_wait_in_a_gpu_where_there_are_others_and_nccl_connects_them(monkeypatch, backends, world_size, waits):
    monkeypatch.setattr("torch.distributed.get_backend_config", lambda: backends)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: world_size)
    assert peers.waits_in_gpu() is waits


def test_without_a_group_nothing_waits_in_a_gpu_and_no_clock_is_set():
    assert not peers.waits_in_gpu()
    peers.end_soon()
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_rank_that_has_failed_and_does_not_end_is_ended_by_the_kernel(monkeypatch):
    monkeypatch.setattr(peers, "waits_in_gpu", lambda: True)
    monkeypatch.setattr(peers, "END_SECONDS", 0.1)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        peers.end_soon()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        while True:
            time.sleep(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGALRM


def test_the_thread_that_looks_is_gone_when_the_block_is_left(tmp_path, become):
    become(0)
    assert ended_by(tmp_path, 0.05) is None
    assert not [thread for thread in threading.enumerate() if thread.name == "peers"]
