"""`trainer bench precision` with real launches, and with the tests' stand-in in the place of TransformerEngine."""

import json

import pytest

from tests import emulation
from tests.commands import trainer
from tests.launching import ONE_THREAD, PROJECT, TINY_GPT2, write_cluster, write_recipe
from tests.messages import says
from trainer.tools.bench import conduct


@pytest.fixture
def words(tmp_path, monkeypatch):
    """What is typed for a tiny model of which every layer may be in fp8."""
    for name, value in {**ONE_THREAD, "PYTHONPATH": str(PROJECT), "CXX": "no-such-compiler"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(conduct, "MEMORY_SECONDS", 0.0)
    monkeypatch.setattr(conduct, "ROUNDS", 1)  # so that no load on this machine can make them differ
    monkeypatch.setattr("trainer.config.cluster.shutil.which", lambda name: None)
    precision = {"bf16_first_blocks": 0, "bf16_last_blocks": 0, "options": {"amax_history_len": 16}}
    recipe = write_recipe(tmp_path, model={"config": TINY_GPT2}, precision=precision)
    return ["bench", "precision", str(write_cluster(tmp_path, 1)), str(recipe), "--steps", "3"]


@pytest.fixture
def stand_in(monkeypatch):
    """TransformerEngine's stand-in, here and in every process that is launched."""
    monkeypatch.setenv("PYTHONPATH", f"{PROJECT}:{emulation.STAND_IN}")
    emulation.install()
    yield
    emulation.uninstall()


def test_each_variant_is_launched_and_an_emulation_is_never_recommended(words, stand_in, tmp_path, without_a_launcher):
    done = trainer(*words, "--json")
    assert done.code == 0, done.out + done.err
    facts = json.loads(done.out)
    assert [each["variant"] for each in facts["measured"]] == ["bf16", "fp8 emulation delayed"]
    assert all(each["tokens_per_second"] > 0 and abs(each["loss_gap"]) < 0.02 for each in facts["measured"])
    assert facts["recommended"] == "bf16"
    assert facts["gains"] == {}
    reasons = {each["name"]: each["reason"] for each in facts["missing"]}
    says(reasons["bf16+compile"], "C++ compiler", "g++")
    says(reasons["fp8 current"], "amax_history_len")
    assert done.err.splitlines().count("round 1 of 1: fp8 emulation delayed") == 1
    [stored] = (tmp_path / "runs" / ".measured").iterdir()
    assert json.loads(stored.read_text())["gains"] == {}
    assert facts["stored_in"] == str(stored)
    assert sorted(path.name for folder in ("runs", "checkpoints") for path in (tmp_path / folder).iterdir()) == [
        ".measured"
    ]


def test_a_mistake_in_what_was_typed_is_one_paragraph_and_starts_nothing(words, tmp_path):
    done = trainer(*words, "optimizer.lrr=1")
    assert done.code == 2
    says(done.err, "optimizer.lr")
    assert not (tmp_path / "runs").exists()
