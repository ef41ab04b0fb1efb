"""A run that ends without being asked to is started again by its launch, as the table says; each row by a planted fault."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.launching import PROJECT, environment, final_bytes, outcome, steps, train, write_cluster, write_recipe
from trainer.checkpoint.format.manifest import read_manifest
from trainer.journal import read_events
from trainer.locks import supervisor_of

PLANTED = """
import os
from trainer import loop
whole = loop.accumulate_gradients

def accumulate(run, batch):
    step = run.progress.step + 1
    {fault}
    return whole(run, batch)

loop.accumulate_gradients = accumulate
"""


def events(recipe, *kinds):
    return read_events(recipe.parent / "runs" / "tiny", *kinds)


def launched(recipe, *overrides, fault=None, num_processes=1, **variables):
    """`trainer launch` of one process or more, in which a line of Python stands before every step."""
    words = [str(write_cluster(recipe.parent, num_processes)), str(recipe), "restart.enabled=true", *overrides]
    if fault:
        (recipe.parent / "planted.py").write_text(PLANTED.format(fault=fault))
        words.append("plugins=[planted]")
    path = os.pathsep.join((str(recipe.parent), str(PROJECT)))
    log = open(recipe.parent / "launch.log", "ab")
    command = [sys.executable, "-m", "trainer", "launch", *words]
    return subprocess.Popen(
        command, cwd=recipe.parent, env={**environment(**variables), "PYTHONPATH": path}, stdout=log, stderr=log
    )


def ranks_of(recipe):
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        words = process.info["cmdline"] or []
        if str(recipe) in words and "train" in words and "RANK" in (process.info["environ"] or {}):
            found.append(process)
    return found


def wait_until(found, seconds=90.0):
    ends = time.monotonic() + seconds
    while not (answer := found()):
        assert time.monotonic() < ends
        time.sleep(0.02)
    return answer


def test_a_killed_rank_is_replaced_and_the_run_ends_as_if_nothing_had_been(tmp_path):
    straight, recipe = tmp_path / "straight", tmp_path / "killed"
    straight.mkdir(), recipe.mkdir()
    straight, recipe = write_recipe(straight), write_recipe(recipe)
    train(straight)
    mark = str(tmp_path / "mark")
    process = launched(
        recipe,
        fault=f"step == 12 and not os.path.exists({mark!r}) and (open({mark!r}, 'w').close(), os.kill(os.getpid(), 9))",
    )
    who, since = wait_until(lambda: supervisor_of(recipe.parent / "runs" / "tiny"))
    assert (who.pid, bool(since)) == (process.pid, True)
    assert process.wait(120) == 0
    assert final_bytes(recipe) == final_bytes(straight)
    assert [record["loss"] for record in steps(recipe)] == [record["loss"] for record in steps(straight)]
    (restart,) = events(recipe, "restart")
    assert (restart["attempt"], restart["wait_seconds"]) == (1, 2.0)
    assert (restart["cause"], restart["step"]) == ("SIGKILL", events(recipe, "stop")[0]["step"])
    assert [event["cause"] for event in events(recipe, "stop")] == ["SIGKILL", "finished"]
    assert supervisor_of(recipe.parent / "runs" / "tiny") is None


def test_a_rank_that_is_suspended_is_named_and_the_run_goes_on_without_anyone(tmp_path):
    recipe = write_recipe(tmp_path)
    fault = "step == 12 and run.accelerator.process_index == 1 and not os.path.exists('stopped') and (open('stopped', 'w').close(), os.kill(os.getpid(), 19))"
    process = launched(recipe, "hang.min_seconds=4", "hang.first_seconds=4", fault=fault, num_processes=2)
    assert process.wait(150) == 0
    (hang,) = events(recipe, "hang")
    assert (hang["rank"], hang["ranks"], hang["step"], hang["phase"]) == (1, [1], 11, "training")
    assert 4.0 <= hang["seconds"] < 3 * 4.0
    stacks = Path(hang["stacks"]).read_text()
    assert stacks.count("accumulate") >= 1 and "rank 0" in stacks and "rank 1" in stacks
    assert [event["cause"] for event in events(recipe, "stop")] == ["hang", "finished"]
    assert len(events(recipe, "restart")) == 1
    assert [record["step"] for record in steps(recipe)] == list(range(1, 25))


@pytest.mark.long
def test_steps_that_have_become_slow_are_left_alone(tmp_path):
    recipe = write_recipe(tmp_path)
    fault = "step > 12 and __import__('time').sleep(1.5)"
    process = launched(recipe, "hang.min_seconds=4", "hang.first_seconds=4", fault=fault, num_processes=2)
    assert process.wait(200) == 0
    assert not events(recipe, "hang") and not events(recipe, "restart")


@pytest.mark.long
def test_the_same_exception_tries_an_older_checkpoint_and_then_it_gives_up(tmp_path):
    recipe = write_recipe(tmp_path, checkpoint={"every_steps": 5, "keep_last": 3})
    process = launched(recipe, fault="assert step != 18, 'it is the code'")
    assert process.wait(200) == 1
    newest, older = (event["step"] for event in events(recipe, "resume"))
    assert older < newest < 18
    assert [event["cause"] for event in events(recipe, "stop")] == ["exception"] * 3
    (gave_up,) = events(recipe, "gave_up")
    assert (gave_up["cause"], gave_up["step"]) == ("exception", 17)
    assert outcome(recipe)["outcome"] == "failed"


@pytest.mark.long
def test_memory_that_is_too_small_halves_the_micro_batch_for_good(tmp_path):
    recipe = write_recipe(tmp_path)
    fault = "batch.micro_batches[0].inputs.shape[0] > 1 and (_ for _ in ()).throw(MemoryError('as if it were full'))"
    assert launched(recipe, "micro_batch=2", fault=fault).wait(200) == 0, "typed, and too large all the same"
    (event,) = events(recipe, "micro_batch")
    assert (event["configured"], event["was"], event["now"]) == (2, 2, 1)
    folder = sorted((tmp_path / "checkpoints" / "tiny").glob("step-*"))[-1]
    assert read_manifest(folder).step == 24
    for config in (folder / "config.yaml", tmp_path / "runs" / "tiny" / "config.yaml"):
        assert "micro_batch: 1" in config.read_text()
    assert launched(recipe, "max_steps=26", fault=fault).wait(200) == 0, "a later start knows it"
    assert len(events(recipe, "micro_batch")) == 1


@pytest.mark.long
def test_a_stop_while_it_waits_to_start_again_ends_it(tmp_path):
    recipe = write_recipe(tmp_path)
    process = launched(recipe, fault="step == 7 and os.kill(os.getpid(), 9)")
    wait_until(lambda: [event for event in events(recipe, "stop") if event["cause"] == "SIGKILL"])
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    assert outcome(recipe)["outcome"] == "interrupted"
    assert len(events(recipe, "start")) == 1 and not ranks_of(recipe)


@pytest.mark.long
def test_a_run_that_dies_at_the_same_place_again_and_again_is_left_in_the_end(tmp_path):
    recipe = write_recipe(tmp_path)
    process = launched(recipe, "restart.max=2", fault="step == 7 and os.kill(os.getpid(), 9)")
    assert process.wait(300) == 1
    assert [event["wait_seconds"] for event in events(recipe, "restart")] == [2.0, 8.0]
    assert [event["cause"] for event in events(recipe, "gave_up")] == ["SIGKILL"]


def test_a_configuration_that_is_wrong_is_not_started_again(tmp_path):
    recipe = write_recipe(tmp_path)
    assert launched(recipe, "model.config.num_attention_heads=7").wait(120) == 2
    assert not events(recipe, "restart") and supervisor_of(tmp_path / "runs" / "tiny") is None
