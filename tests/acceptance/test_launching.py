"""The real launchers: signals reach the trainer through them, nothing is left behind, and the exit code is the run's own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.commands import paragraph, trainer
from tests.launching import (
    PROJECT,
    checkpoint,
    environment,
    outcome,
    records,
    steps,
    train,
    write_cluster,
    write_recipe,
)
from tests.messages import line_of, says
from trainer import start
from trainer.checkpoint.format.manifest import read_manifest
from trainer.journal import read_events
from trainer.safety.forward import REPEATED_SECONDS

LONG = (
    "max_steps=100000",
    "checkpoint.every_steps=1000",
    "evaluation.every_steps=5",
    "metrics.console_every_steps=1000",
)


def _start(words: list[str], log: Path, cwd: Path | None = None, **variables: str) -> subprocess.Popen:
    with open(log, "wb") as output:
        return subprocess.Popen(
            [sys.executable, *words],
            env=environment(**variables),
            cwd=cwd,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def _foreign(folder: Path) -> Path:
    """A folder with another trainer, and with modules that are called like those that ours needs."""
    (folder / "trainer").mkdir(parents=True)
    for name in ("trainer/__init__", "yaml", "tokenize", "psutil"):
        (folder / f"{name}.py").write_text("raise SystemExit('the wrong code runs')")
    return folder


def _trainers(recipe: Path) -> list[psutil.Process]:
    """Every process whose command line names this recipe."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if str(recipe) in (process.info["cmdline"] or []):
            found.append(process)
    return found


def _start_training(words: list[str], recipe: Path, **place: Any) -> subprocess.Popen:
    """Starts a launcher and waits until steps are taken."""
    log = recipe.parent / "launcher.log"
    launcher = _start(words, log, **place)
    ends = time.monotonic() + 120
    while not (steps(recipe) and steps(recipe)[-1]["step"] >= 5):
        assert launcher.poll() is None and time.monotonic() < ends, log.read_text()
        time.sleep(0.05)
    return launcher


def _interrupt(words: list[str], recipe: Path, number: int, **place: Any) -> int:
    """Starts a launcher, sends it (and it alone) a signal once steps are taken, and returns its exit code."""
    launcher = _start_training(words, recipe, **place)
    os.kill(launcher.pid, number)
    code = launcher.wait(60)
    assert not _trainers(recipe), "a trainer was left behind"
    return code


def _rank(recipe: Path, number: int) -> psutil.Process:
    """The process of one rank."""
    return next(process for process in _trainers(recipe) if process.environ().get("RANK") == str(number))


def _check_interrupted(recipe: Path, number: int, said: str) -> None:
    ended = outcome(recipe)
    last = steps(recipe)[-1]["step"]
    assert ended["outcome"] == "interrupted" and ended["step"] == last, ended
    assert ended["reason"] in (f"{signal.Signals(number).name} was received", "another process was asked to stop")
    assert checkpoint(recipe, last).is_dir()
    evaluated = [(record["step"], record["val_loss"]) for record in records(recipe) if "val_loss" in record]
    manifest = read_manifest(checkpoint(recipe, last))
    for step, loss in (
        (ended.get("last_val_step"), ended.get("last_val_loss")),
        (manifest.last_val_step, manifest.last_val_loss),
    ):
        assert (step, loss) == (evaluated[-1] if evaluated else (None, None))
    assert f"step {last}: checkpoint (interrupt)" in said
    assert [record["step"] for record in steps(recipe)] == list(range(1, last + 1))


@pytest.mark.parametrize(
    ("num_processes", "number"),
    [(1, signal.SIGTERM), pytest.param(2, signal.SIGINT, marks=pytest.mark.long)],
    ids=["one-SIGTERM", "two-SIGINT"],
)
def test_a_signal_to_accelerate_launch_saves_and_ends_every_rank(tmp_path, num_processes, number):
    recipe = write_recipe(tmp_path)
    cluster = write_cluster(tmp_path, num_processes)
    words = [
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(cluster),
        "-m",
        "trainer",
        "train",
        str(recipe),
        *LONG,
    ]
    _interrupt(words, recipe, number)
    _check_interrupted(recipe, number, (tmp_path / "launcher.log").read_text())


HOLDS = """
import os, time
from pathlib import Path
from trainer import loop
calls, real, folder = iter(range(1, 1000)), loop.accumulate_gradients, Path({folder!r})

def accumulate(run, batch):
    if next(calls) == 7 and os.environ.get("RANK") == "1":
        of_monitor = run.precision.micro_batch

        def micro_batch(number):
            if number == 2:
                (folder / "there").touch()
            while number == 2 and not (folder / "go").exists():
                time.sleep(0.01)
            of_monitor(number)

        run.precision.micro_batch = micro_batch
    return real(run, batch)

loop.accumulate_gradients = accumulate
"""
"""A plugin with which rank 1 waits in the second micro-batch of step 7."""


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.long)])
def test_a_signal_to_launch_sh_amid_accumulation_saves_and_its_exit_code_asks_to_be_queued_again(tmp_path, number):
    """This is what launch.sh becomes (by exec) once the environment is there, wherever one stands and whatever PYTHONPATH holds."""
    recipe, cluster = write_recipe(tmp_path, plugins=["holds"]), write_cluster(tmp_path, 2)
    (tmp_path / "other" / "trainer").mkdir(parents=True)
    (tmp_path / "other" / "trainer" / "__init__.py").write_text("raise SystemExit('the wrong code runs')")
    (tmp_path / "other" / "holds.py").write_text(HOLDS.format(folder=str(tmp_path)))
    words = start.command("trainer", "launch", str(cluster), str(recipe), *LONG)[1:]
    launcher = _start_training(words, recipe, cwd=_foreign(tmp_path / "foreign"), PYTHONPATH=str(tmp_path / "other"))
    while not (tmp_path / "there").exists():
        assert launcher.poll() is None, (tmp_path / "launcher.log").read_text()
        time.sleep(0.01)
    os.kill(launcher.pid, number)
    time.sleep(0.3)  # for the signal on its way to both ranks, one of which waits for the other
    (tmp_path / "go").touch()
    assert launcher.wait(60) == 75
    assert not _trainers(recipe), "a trainer was left behind"
    said = (tmp_path / "launcher.log").read_text()
    _check_interrupted(recipe, number, said)
    assert outcome(recipe)["step"] in (7, 8), "the step of the signal, or the next"
    line_of(said, "tiny", "interrupted", "step")
    assert "Traceback" not in said
    assert "death signal" not in said
    assert f"{recipe} max_steps=100000" in said.partition("Next:\n")[2].splitlines()[0]

    last = steps(recipe)[-1]["step"]
    train(recipe, f"max_steps={last + 3}", "plugins=[]", num_processes=2)
    assert [record["step"] for record in steps(recipe)] == list(range(1, last + 4))


@pytest.mark.long
def test_ctrl_c_again_ends_a_launch_amid_a_step_which_would_never_end(tmp_path):
    recipe, cluster = write_recipe(tmp_path, plugins=["holds"]), write_cluster(tmp_path, 2)
    (tmp_path / "holds.py").write_text(HOLDS.format(folder=str(tmp_path)))
    words = ["-m", "trainer", "launch", str(cluster), str(recipe), *LONG, "evaluation.every_steps=6"]
    launcher = _start_training(words, recipe, PYTHONPATH=f"{PROJECT}:{tmp_path}")
    ranks = [_rank(recipe, number) for number in range(2)]
    os.kill(launcher.pid, signal.SIGINT)
    time.sleep(REPEATED_SECONDS + 0.2)
    assert launcher.poll() is None
    os.kill(launcher.pid, signal.SIGINT)
    assert launcher.wait(10) == 75
    assert psutil.wait_procs(ranks, 5)[1] == []
    ended = outcome(recipe)
    assert (ended["outcome"], ended["step"]) == ("interrupted", 6)
    says((tmp_path / "launcher.log").read_text(), "Ctrl+C")
    train(recipe, "max_steps=9", "plugins=[]", num_processes=2)
    assert [event["step"] for event in read_events(tmp_path / "runs" / "tiny", "resume")] == [6], (
        "the best was saved there"
    )


@pytest.mark.long
@pytest.mark.parametrize("num_processes", [1, 2])
def test_what_a_supervised_run_is_asked_through_its_launch_is_answered_and_it_is_not_started_again(
    tmp_path, num_processes
):
    often = {"every_steps": None, "max_lost_work_seconds": float("inf")}
    recipe = write_recipe(tmp_path, checkpoint=often, restart={"enabled": True})
    words = ["-m", "trainer", "launch", str(write_cluster(tmp_path, num_processes)), str(recipe), *LONG]
    launcher = _start_training([*words, "checkpoint.every_steps=null"], recipe)
    folder, ends = tmp_path / "runs" / "tiny", time.monotonic() + 60
    stacks = [folder / "stacks" / f"rank-{number}.txt" for number in range(num_processes)]
    below = psutil.Process(launcher.pid).children()[0].pid

    def saves():
        """Requests that were answered: a step that is the best one too is saved for that."""
        return sum(event["do"] == "save" and event["saved"] for event in read_events(folder, "request"))

    for number, (sent_to, is_answered) in enumerate([(launcher.pid, 1), (below, 2)]):
        os.kill(sent_to, signal.SIGUSR1)
        os.kill(sent_to, signal.SIGUSR2)
        while saves() < is_answered or not all(path.read_text().count("loop.py") > number for path in stacks):
            assert launcher.poll() is None and time.monotonic() < ends, (
                saves(),
                (tmp_path / "launcher.log").read_text(),
            )
            time.sleep(0.05)
        time.sleep(0.3)
    assert trainer("stop", str(folder)).code == 0
    assert launcher.wait(30) == 75
    assert outcome(recipe)["outcome"] == "interrupted"
    assert read_events(folder, "restart", "gave_up") == []


@pytest.mark.parametrize("compiles", [False, pytest.param(True, marks=pytest.mark.long)])
def test_launch_sh_reports_and_does_not_start_over(tmp_path, compiles):
    """One run; called again it says that it is finished. With torch.compile it is the shipped CPU cluster file as it is."""
    recipe = write_recipe(tmp_path)
    words = [
        "-m",
        "trainer",
        "launch",
        "cpu" if compiles else str(write_cluster(tmp_path, 1)),
        str(recipe),
        "max_steps=6",
        "evaluation.every_steps=3",
        "schedule.warmup_steps=2",
    ]
    log = tmp_path / "launcher.log"
    assert _start(words, log).wait(300) == 0, log.read_text()
    said = log.read_text()
    assert ("with torch.compile (inductor)" in said) == compiles
    assert "recompile_limit" not in said
    for expected in (
        "tiny: finished at step 6",
        "validation loss",
        "exported model",
        "checkpoints",
        "TensorBoard",
        "Next:",
    ):
        assert expected in said, said

    before = records(recipe), checkpoint(recipe, 6).stat().st_mtime_ns
    assert _start(words, log).wait(120) == 0, log.read_text()
    says(log.read_text(), "tiny", "finished")
    assert (records(recipe), checkpoint(recipe, 6).stat().st_mtime_ns) == before


@pytest.mark.long
def test_a_rank_that_the_system_kills_is_the_reason_that_launch_sh_states(tmp_path):
    recipe, cluster = write_recipe(tmp_path), write_cluster(tmp_path, 2)
    launcher = _start_training(["-m", "trainer", "launch", str(cluster), str(recipe), *LONG], recipe)
    _rank(recipe, 1).kill()
    assert launcher.wait(60) == 1
    assert not _trainers(recipe)
    ended = outcome(recipe)
    assert (ended["outcome"], ended["step"]) == ("failed", steps(recipe)[-1]["step"])
    says(ended["reason"], "rank 1", "SIGKILL")
    assert "micro_batch=1" in ended["reason"]
    said = (tmp_path / "launcher.log").read_text()
    assert "Traceback" not in said
    line_of(said, "tiny", "failed", f"step {ended['step']}", ended["reason"])


def test_when_everything_above_the_trainer_is_killed_it_saves_and_ends(tmp_path):
    recipe, cluster = write_recipe(tmp_path), write_cluster(tmp_path, 1)
    launcher = _start_training(["-m", "trainer", "launch", str(cluster), str(recipe), *LONG], recipe)
    trainer = _rank(recipe, 0)
    agent = trainer.parent()
    for process in (launcher, agent):
        process.kill()
    launcher.wait(10)
    try:
        trainer.wait(60)
    finally:
        for left in _trainers(recipe):
            left.kill()
    _check_interrupted(recipe, signal.SIGTERM, (tmp_path / "launcher.log").read_text())


@pytest.mark.long
@pytest.mark.parametrize("num_processes", [1, 2])
def test_two_launches_of_one_run_at_once_leave_it_to_the_first(tmp_path, num_processes):
    """Both have passed the look before the launch when the first takes the run; the second says that, and nothing else."""
    recipe, cluster = write_recipe(tmp_path), write_cluster(tmp_path, num_processes)
    words = ["-m", "trainer", "launch", str(cluster), str(recipe), *LONG]
    first = _start_training(words, recipe)
    blind = "from trainer import launcher; launcher.check_not_trained = lambda folder: None; from trainer.cli import main; main()"
    second = subprocess.run(
        [sys.executable, "-c", blind, *words[2:]],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    before = outcome(recipe)
    first.terminate()
    assert first.wait(60) == 75
    assert second.returncode == 2
    assert second.stdout == ""
    says(paragraph(second.stderr), "another process", "tiny")
    assert (before["outcome"], before["reason"]) == ("running", "training")
