"""`trainer selftest` with real launches: exact where the trainer is, and not where a fault was planted."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.commands import trainer
from tests.launching import ONE_THREAD, PROJECT, TINY_GPT2, write_cluster, write_recipe
from tests.messages import says
from trainer.tools.selftest import conduct

FAULT = '''
"""One number of a rank's random stream is drawn after a resume that nobody drew the first time."""
import importlib.machinery
import sys


class Plant:
    def find_spec(self, name, path, target=None):
        if name != "trainer.checkpoint.format.random_states":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            restore = module.restore

            def restore_and_draw(states, device):
                import torch

                restore(states, device)
                torch.rand(1)

            module.restore = restore_and_draw

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Plant())
'''


@pytest.fixture
def words(tmp_path, monkeypatch):
    """What is typed for the tiny model with dropout, whose numbers need every random stream."""
    for name, value in {**ONE_THREAD, "PYTHONPATH": str(PROJECT)}.items():
        monkeypatch.setenv(name, value)
    recipe = write_recipe(tmp_path, model={"config": TINY_GPT2})
    return ["selftest", str(write_cluster(tmp_path, 1)), str(recipe), "--seconds", "1", "--json"]


def test_a_run_that_is_killed_and_resumed_is_said_to_be_exact(words, tmp_path, without_a_launcher):
    done = trainer(*words)
    assert done.code == 0, done.out + done.err
    facts = json.loads(done.out)
    assert facts["exact"]
    assert facts["differences"] == []
    assert {one["hit_writer"] for one in facts["survived"]} == {True, False}
    assert [list((tmp_path / folder).iterdir()) for folder in ("runs", "checkpoints")] == [[], []]


@pytest.mark.long
def test_a_run_whose_steps_are_longer_than_they_seemed_is_killed_again(words, tmp_path, monkeypatch):
    measure = conduct.KillTest.measure

    def measure_while_busy(site):
        costs = measure(site)
        return replace(costs, step_seconds=100 * costs.step_seconds)

    monkeypatch.setattr(conduct.KillTest, "measure", measure_while_busy)
    done = trainer(*words)
    assert done.code == 0, done.out + done.err
    facts = json.loads(done.out)
    assert facts["exact"]
    assert facts["differences"] == []
    assert facts["computed_in"] == "fp32"
    assert len(facts["survived"]) >= 2
    assert {one["hit_writer"] for one in facts["survived"]} == {True, False}
    assert any(one["lost_steps"] > 0 for one in facts["survived"])
    assert all("resume exact" in one["verdict"] for one in facts["survived"] if one["lost_steps"])
    says(done.err, "--seconds")
    # Where the machine is so busy that steps are long in truth, the first attempt, of 9 steps, is enough.
    attempts = [line for line in done.err.splitlines() if line.startswith("straight: ")]
    assert (len(attempts) > 1) == (facts["choice"]["steps"] > 9), attempts
    left = sorted(path.name for folder in ("runs", "checkpoints") for path in (tmp_path / folder).iterdir())
    assert left == []


@pytest.mark.long
def test_a_random_stream_that_does_not_come_back_is_found_and_the_runs_are_kept(
    words, tmp_path, monkeypatch, without_a_launcher
):
    (tmp_path / "sitecustomize.py").write_text(FAULT)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{PROJECT}")
    done = trainer(*words)
    assert done.code == 1, done.out + done.err
    facts = json.loads(done.out)
    assert not facts["exact"]
    assert facts["verdict"].startswith("NOT exact: step ")
    assert any("resume NOT exact" in sentence for sentence in facts["differences"])
    assert any("tensors" in sentence for sentence in facts["differences"])
    assert all((Path(folder) / name).is_dir() for folder in facts["folders"] for name in ("straight", "killed"))


def test_a_mistake_in_what_was_typed_is_one_paragraph_and_starts_nothing(words, tmp_path):
    done = trainer(*words, "optimizer.lrr=1")
    assert done.code == 2
    says(done.err, "optimizer.lr")
    assert not (tmp_path / "runs").exists()
