"""What a person asks of a run that trains: a checkpoint or a stop, by a command or a signal; all ranks answer at the same step."""

import os
import signal
import time
from contextlib import contextmanager

from tests.commands import paragraph, trainer
from tests.launching import checkpoint, outcome, start, steps, wait_for_step, write_recipe
from tests.messages import says
from trainer.checkpoint.format.manifest import read_manifest
from trainer.journal import read_events
from trainer.safety import request_file
from trainer.safety.request_file import REQUEST, Asked

ENDLESS = (
    "max_steps=100000",
    "checkpoint.every_steps=null",
    "checkpoint.max_lost_work_seconds=.inf",
    "checkpoint.keep_last=1",
    "evaluation.every_steps=100000",
    "metrics.trackers=[]",
)
"""A run that saves only when it is asked to."""


def run_folder(recipe):
    return recipe.parent / "runs" / "tiny"


def asked_for(recipe):
    """Steps of the checkpoints that somebody asked for."""
    return [event["step"] for event in read_events(run_folder(recipe), "save") if event["reason"] == "asked"]


@contextmanager
def killed_at_the_end(run):
    try:
        yield
    finally:
        run.kill()


def until(is_so, run, seconds=60.0):
    ends = time.monotonic() + seconds
    while not is_so():
        assert run.running and time.monotonic() < ends, run.text()
        time.sleep(0.01)


def test_two_ranks_save_and_stop_when_they_are_asked(tmp_path):
    recipe = write_recipe(tmp_path)
    folder = run_folder(recipe)
    run = start(recipe, *ENDLESS, num_processes=2)
    with killed_at_the_end(run):
        wait_for_step(recipe, 3, run)
        said = trainer("save", str(folder), "--pin")
        assert said.code == 0, said.err
        (first,) = asked_for(recipe)
        assert str(checkpoint(recipe, first)) in said.out
        time.sleep(0.3)  # one that comes so soon after a save is answered by it
        os.kill(run.ranks[1].pid, signal.SIGUSR1)  # to one rank, and not to that which decides
        until(lambda: len(asked_for(recipe)) == 2, run)
        second = asked_for(recipe)[1]
        assert second > first
        # The oldest would have gone (keep_last is 1), had it not been pinned.
        assert [read_manifest(checkpoint(recipe, step)).pinned for step in (first, second)] == [True, False]
        said = trainer("stop", str(folder))
        assert said.code == 0, said.err
        assert run.wait(60) == 75
    ended, taken = outcome(recipe), [record["step"] for record in steps(recipe)]
    assert (ended["outcome"], ended["step"]) == ("interrupted", taken[-1])
    assert taken == list(range(1, taken[-1] + 1))
    assert read_manifest(checkpoint(recipe, taken[-1])).reason == "interrupt"
    stopped_at = next(event["step"] for event in read_events(folder, "request") if event["do"] == "stop")
    assert taken[-1] <= stopped_at + 1
    says(ended["reason"], "`stop`", os.uname().nodename)
    for words in (("save", str(folder)), ("stop", str(folder))):
        said = trainer(*words)
        assert said.code == 2
        says(paragraph(said.err), "tiny", "interrupted")
    assert not (folder / REQUEST).exists()


def test_a_launch_ends_by_itself_before_its_hours_are_over(tmp_path):
    recipe = write_recipe(tmp_path)
    run_folder(recipe).mkdir(parents=True)
    request_file.leave(run_folder(recipe), Asked("stop"))  # of a launch that was killed before it saw it
    run = start(recipe, *ENDLESS, f"max_hours={3 / 3600}")
    assert run.wait(60) == 75, run.text()
    ended = outcome(recipe)
    assert (ended["outcome"], ended["step"]) == ("interrupted", steps(recipe)[-1]["step"])
    assert checkpoint(recipe, ended["step"]).is_dir()
    says(ended["reason"], "max_hours")
