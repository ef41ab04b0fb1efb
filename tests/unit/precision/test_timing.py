"""How fast a precision is on a device, and what is made of it."""

import numpy as np
import pytest
import torch

from trainer.config.load import load
from trainer.precision import timing
from trainer.precision.decide import Decision, decide
from trainer.precision.negotiate import negotiate, propose
from trainer.precision.probe import probe_device
from trainer.precision.timing import product_seconds, speed_over_fp32, timed


@pytest.fixture
def seconds(monkeypatch):
    """Lets a product take as long as it is told, by its dtype."""

    def put(**by_name):
        monkeypatch.setattr(
            timing, "product_seconds", lambda dtype, device_type, width: by_name[str(dtype).removeprefix("torch.")]
        )

    return put


def settled(asked="bf16"):
    config = load("shakespeare").config
    return negotiate(propose(asked, config, "cpu", lambda: None), config.precision, lambda value: [value])


def test_a_launch_in_a_precision_that_is_slower_here_decides_for_it_and_says_how_slow(seconds):
    seconds(float32=0.001, bfloat16=0.06)
    decision = settled()
    assert decision.mode == "bf16"
    assert decision.speed == pytest.approx(1 / 60)
    assert decision.is_slow
    assert "1/60" in decision.slow_warning
    assert "bf16" in decision.slow_warning
    assert decision.as_json()["speed"] == decision.speed
    assert "60" not in decision.sentence


def test_one_that_is_faster_is_told_by_the_doctor_alone(seconds):
    seconds(float32=0.004, bfloat16=0.002)
    decision = settled()
    assert not decision.is_slow
    assert "2.0" in decision.speed_words
    assert decision.slow_warning is None


def test_fp32_and_a_fallback_to_it_are_not_timed(seconds):
    seconds()
    assert settled("no").speed is None
    assert settled("fp16").speed is None
    assert settled("no").speed_words == ""


def test_a_fallback_from_fp8_to_a_slow_bf16_says_so_too(seconds):
    seconds(float32=0.001, bfloat16=0.002)
    decision = settled("fp8")
    assert decision.mode == "bf16"
    assert "50%" in decision.slow_warning


def test_a_decision_without_a_time_reads_as_before():
    decision = decide("bf16", probe_device("cpu"))
    assert decision.speed is None
    assert not decision.is_slow
    assert timed(Decision("no", "no", ""), "cpu").speed is None


def test_products_of_this_device_are_timed_and_leave_the_random_state_alone():
    before = torch.get_rng_state()
    assert 0 < product_seconds(torch.float32, "cpu", 32) < 10
    assert speed_over_fp32(torch.bfloat16, "cpu") > 0
    assert torch.equal(before, torch.get_rng_state())


def test_the_first_product_which_makes_handles_and_threads_is_not_counted_and_slow_ones_are_not_repeated(monkeypatch):
    def seconds_of(*products):
        clock = iter(np.cumsum([part for seconds in products for part in (0.0, seconds)]).tolist())
        monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
        found = product_seconds(torch.float32, "cpu", 2)
        monkeypatch.undo()
        return found, len(list(clock))

    assert seconds_of(0.9, 0.003, 0.001, 0.002, 0.003, 0.003) == (pytest.approx(0.001), 0)
    found, untouched = seconds_of(0.9, 0.3, *[0.2] * 9)
    assert found == pytest.approx(0.3)
    assert untouched > 0
