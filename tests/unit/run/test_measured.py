"""What was measured is read by rank 0 and is everyone's, unless another rank has another device."""

import pytest
import torch

from trainer.config.load import load
from trainer.launch.environment import LaunchEnv
from trainer.precision.measured import Measured, store
from trainer.run import join
from trainer.run.identity import speed_conditions

CPU = torch.device("cpu")
CONFIG = load("shakespeare").config


@pytest.fixture
def found(project, monkeypatch):
    """Stores a result, and gives what a rank finds when the ranks have these devices."""
    store(project / "runs", speed_conditions(CONFIG, 2, CPU), "2026-11-25", {"current": 0.1})

    def find(*others, is_main=True):
        def gather(mine):
            of_main = (speed_conditions(CONFIG, 2, CPU), Measured("2026-11-25", {"current": 0.1}))
            return [mine if is_main else of_main, *(({**mine[0], "device": device}, None) for device in others)]

        monkeypatch.setattr("trainer.run.join.all_gather", gather)
        return join.measured_gain(CONFIG, LaunchEnv("fp8", True, 2, is_main), CPU)

    return find


def test_rank_0_reads_and_every_rank_has_the_same(found):
    assert found("cpu") == found("cpu", is_main=False) == Measured("2026-11-25", {"current": 0.1})


def test_ranks_on_devices_of_two_kinds_have_none(found):
    assert found("NVIDIA L40S") is None


def test_what_was_measured_of_a_whole_model_is_not_that_of_one_which_is_frozen_in_part():
    of_groups = [
        speed_conditions(load("shakespeare", [f"optimizer.groups={groups}"]).config, 2, CPU)
        for groups in ("[]", "[{match: embed, lr: 1e-3}]", "[{match: embed, freeze: true}]")
    ]
    assert of_groups[0] == of_groups[1] == speed_conditions(CONFIG, 2, CPU) != of_groups[2]
