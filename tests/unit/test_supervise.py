"""What a supervisor does between two launches, with launches that are played."""

import errno
import os
from types import SimpleNamespace

import pytest

from tests.messages import refuses
from trainer import launcher, supervise
from trainer.ending.outcome_file import read_outcome, write_outcome
from trainer.errors import ConfigError, LaunchError
from trainer.journal import Journal, read_events
from trainer.locks import lock_run
from trainer.safety import request_file
from trainer.safety.request_file import Asked


@pytest.fixture
def played(project, cluster, monkeypatch):
    """A run whose launches end with these codes, one after another, each after what it does."""
    monkeypatch.setattr("trainer.restart.decide.FIRST_WAIT_SECONDS", 0.0)
    monkeypatch.setattr(supervise, "LOOK_SECONDS", 0.01)
    run = SimpleNamespace(
        folder=project / "runs" / "mine", codes=[], does=lambda number: None, launched=[], cluster=cluster
    )
    run.words = [cluster(), "shakespeare", "name=mine", "restart.enabled=true", "restart.max=4"]

    def run_launch(checked, signals):
        run.launched.append(checked)
        run.does(len(run.launched))
        assert len(run.launched) < 20, "it starts again without end"
        return run.codes.pop(0) if run.codes else 1

    monkeypatch.setattr(launcher, "run_launch", run_launch)

    def start():
        checked = supervise.adapted(run.words)
        with supervise.supervised(checked):
            return supervise.supervise(run.words, checked)

    run.start, run.events = start, lambda *kinds: read_events(run.folder, *kinds)
    return run


def test_a_disk_that_takes_no_word_ends_the_restarts_as_any_other(played, monkeypatch):
    """Nothing in the journal counts them: without memory it was started again every two seconds for ever."""

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("trainer.files.append_line", full)
    assert played.start() == 1
    assert len(played.launched) == 1 + 4


def test_a_restart_stands_in_the_journal_before_its_wait(played, monkeypatch):
    monkeypatch.setattr(supervise, "_sleep", lambda *_: played.events("restart") or pytest.fail("not told yet"))
    played.codes = [1, 0]
    assert played.start() == 0
    assert [event["attempt"] for event in played.events("restart")] == [1]


def test_a_stop_that_is_asked_for_while_it_waits_ends_it(played):
    played.does = lambda number: request_file.leave(played.folder, Asked("stop"))
    write_outcome(played.folder, "running", step=7, reason="training")
    assert played.start() == 75
    assert (len(played.launched), read_outcome(played.folder)["outcome"]) == (1, "interrupted")
    assert not (played.folder / request_file.REQUEST).exists()


def test_a_stop_that_is_asked_for_while_it_waits_for_gpus_ends_it(played, monkeypatch):
    here = [2]
    monkeypatch.setattr("trainer.config.cluster.count_gpus", lambda: here[0])
    played.words[0] = played.cluster(use_cpu=None)

    def loses_a_gpu(number):
        Journal(played.folder).write("start", processes=2)
        here[0] = 1

    def asks(number):
        request_file.leave(played.folder, Asked("stop"))
        return 0.0

    played.does = loses_a_gpu
    monkeypatch.setattr(supervise, "wait_seconds", asks)
    assert played.start() == 75
    assert [event["what"] for event in played.events("waiting")] == ["gpus"]


def test_hours_that_are_over_while_it_waits_end_it(played, monkeypatch):
    played.words.append("max_hours=1")
    played.does = lambda number: monkeypatch.setattr(launcher, "_BEGAN", launcher._BEGAN - 3600)
    assert played.start() == 75
    assert len(played.launched) == 1


def test_ranks_that_are_still_ending_are_waited_for(played, monkeypatch):
    held = []
    played.does = lambda number: held.append(lock_run(played.folder)) if number == 1 else None
    slept = supervise._sleep

    def sleep(*given):
        if played.events("waiting"):
            held.pop().close()
        return slept(*given)

    monkeypatch.setattr(supervise, "_sleep", sleep)
    played.codes = [1, 0]
    assert played.start() == 0
    assert [event["what"] for event in played.events("waiting")] == ["ranks"]


def test_a_cluster_file_that_is_edited_or_gone_while_a_run_trains_changes_nothing_at_its_restart(played):
    played.does = lambda number: os.unlink(played.words[0]) if number == 1 else None
    played.codes = [1, 1, 0]
    assert played.start() == 0
    assert [checked.cluster.num_processes for checked in played.launched] == [2, 2, 2]


def test_a_check_that_fails_before_a_restart_is_told_as_its_end(played, monkeypatch):
    def check(*_):
        raise ConfigError("no")

    monkeypatch.setattr(supervise, "check_again", check)
    with refuses(ConfigError, "no"):
        played.start()
    (event,) = played.events("gave_up")
    assert event["step"] == 0


def test_of_two_that_start_at_one_instant_one_supervises(played):
    first = supervise.adapted(played.words)
    second = supervise.adapted(played.words)
    with supervise.supervised(first):
        with refuses(LaunchError, "supervises mine"), supervise.supervised(second):
            pass


# A machine that is not the first


@pytest.fixture
def following(played, monkeypatch):
    """The second of two machines, whose first says this after each launch."""
    monkeypatch.setenv("NODE_RANK", "1")
    several = {"num_machines": 2, "main_process_ip": "127.0.0.1", "main_process_port": 29500, "machine_rank": 0}
    played.words[0] = played.cluster(**several)
    monkeypatch.setattr(supervise, "_sleep", lambda *_: pytest.fail("the first machine said nothing"))

    def start(*said):
        events = list(said)

        def says(number):
            for event, facts in events.pop(0):
                Journal(played.folder).write(event, **facts)

        played.does = says
        return supervise.follow(played.words, supervise.adapted(played.words))

    played.start = start
    return played


RESTART, GAVE_UP = ("restart", {"attempt": 1}), ("gave_up", {})


def test_the_launch_that_has_ended_is_not_taken_for_the_next_one(following, monkeypatch):
    """The second machine may be started before the first: it would meet what is left of the launch that ends."""
    says = iter([RESTART])

    def later(*_):
        event, facts = next(says)
        Journal(following.folder).write(event, **facts)

    monkeypatch.setattr(supervise, "_sleep", later)
    following.codes = [1, 0]
    assert following.start([("launch", {}), ("start", {})], []) == 0
    assert next(says, None) is None, "it waited for the word"


def test_another_machine_launches_again_as_the_first_does_and_ends_when_it_gives_up(following, monkeypatch):
    monkeypatch.setattr(launcher.select, "check", lambda *_: None)  # there is no checkpoint of step 5
    peer, older = ("stop", {"cause": "peer"}), ("restart", {"from_step": 5})
    assert following.start([peer, RESTART], [older], [peer, GAVE_UP]) == 1
    assert [one.config.resume_from_checkpoint for one in following.launched] == ["latest", "latest", "5"]
    assert following.events("gave_up", "restart") and not (following.folder / ".supervisor").exists()


@pytest.mark.parametrize(
    ("code", "said"), [(0, []), (75, []), (3, []), (2, []), (1, [("stop", {"cause": "finished"})])]
)
def test_another_machine_ends_with_the_run(following, code, said):
    following.codes = [code]
    assert following.start(said) == code and len(following.launched) == 1


def test_another_machine_starts_beside_the_first_which_holds_the_run(following):
    following.codes = [0]
    with lock_run(following.folder):
        assert following.start([]) == 0


def test_without_restarts_another_machine_ends_with_its_launch(following):
    following.words.append("restart.enabled=false")
    assert following.start([]) == 1
