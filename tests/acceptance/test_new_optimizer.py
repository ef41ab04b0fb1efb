"""An optimizer that one file and one line of the registry add trains, resumes exactly, and is known wherever settings are."""

import os
import subprocess
import sys

from tests.launching import ONE_THREAD, PROJECT, final_bytes, write_recipe
from trainer.config.load import read_settings
from trainer.replay import read_facts

REGISTERED = """
import sys
from trainer.config.optimizers import OPTIMIZERS
OPTIMIZERS["sgd"] = "tests.unit.optim.sgd"
from trainer.cli import main
sys.exit(main())
"""


def run(*words: str, exit_code: int = 0) -> str:
    """A command of the trainer with a third optimizer; what it printed."""
    command = [sys.executable, "-c", REGISTERED, *words]
    environment = {**os.environ, **ONE_THREAD, "ACCELERATE_USE_CPU": "true"}
    ended = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)
    assert ended.returncode == exit_code, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def test_a_third_optimizer_is_one_file_and_one_line(tmp_path):
    assert "optimizer.sgd_momentum" in run("settings")
    assert "sgd" in run("train", "shakespeare", "optimizer.name=adam", exit_code=2)
    (tmp_path / "whole").mkdir()
    (tmp_path / "parted").mkdir()
    changes = {"optimizer": {"name": "sgd", "lr": 0.05, "sgd_momentum": 0.8}, "schedule": {"name": "constant"}}
    whole, parted = (write_recipe(tmp_path / name, **changes) for name in ("whole", "parted"))
    run("train", str(whole), "max_steps=10")
    run("train", str(parted), "max_steps=5")
    run("train", str(parted), "max_steps=10")
    assert final_bytes(parted, 10) == final_bytes(whole, 10)
    assert read_settings(tmp_path / "whole/runs/tiny/config.yaml")["optimizer"]["sgd_momentum"] == 0.8
    (facts,) = read_facts(tmp_path / "whole/runs/tiny").values()
    assert facts["sgd_kernel"] == "cpu"
    assert facts["muon_iteration"] is None
