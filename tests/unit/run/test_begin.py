"""What is said when a run goes on under other conditions."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from trainer.checkpoint.resume.changes import Change
from trainer.run.begin import LONG_SECONDS, offer_selftest

TORCH, RATE = Change("torch", "2.12.0", "2.13.0", is_version=True), Change("optimizer.lr", 0.1, 0.2)


@pytest.mark.parametrize(
    ("changed", "steps_left", "is_offered"),
    [([RATE, TORCH], 100, True), ([TORCH], 99, False), ([RATE], 1000, False), ([], 1000, False)],
)
def test_a_long_run_that_goes_on_with_other_versions_is_offered_a_selftest(caplog, changed, steps_left, is_offered):
    run = SimpleNamespace(
        restorer=SimpleNamespace(changes=changed),
        config=SimpleNamespace(max_steps=500),
        folder=Path("/work of mine/runs/a"),
    )
    offer_selftest(
        run, 500 - steps_left if steps_left <= 500 else 0, LONG_SECONDS / 100 if steps_left <= 500 else LONG_SECONDS
    )
    assert bool(caplog.messages) is is_offered
    if is_offered:
        (line,) = caplog.messages
        assert "torch 2.12.0 -> 2.13.0" in line
        assert "optimizer.lr" not in line
        assert "launch.sh selftest '/work of mine/runs/a/config.yaml'" in line
