import pytest

from trainer.metrics.meters import SpeedMeter


def meter(peak_flops=1e6, num_devices=2):
    return SpeedMeter(flops_per_token=100.0, peak_flops=lambda: peak_flops, num_devices=num_devices)


def test_speed_is_tokens_over_the_time_of_the_step():
    speed = meter().step(1000, 0.5)
    assert speed.step_seconds == 0.5
    assert speed.tokens_per_second == 2000
    assert speed.mfu == pytest.approx(2000 * 100 / 2e6)


def test_a_device_of_unknown_peak_has_no_mfu():
    assert meter(peak_flops=None).step(1000, 1.0).mfu is None


def test_the_peak_is_that_of_the_precision_that_a_run_has_just_now():
    peaks = iter([2e6, 1e6])
    clock = SpeedMeter(flops_per_token=100.0, peak_flops=lambda: next(peaks), num_devices=1)
    assert [clock.step(1000, 1.0).mfu for _ in range(2)] == pytest.approx([0.05, 0.1])


def test_the_time_left_follows_the_recent_pace():
    clock = meter()
    assert clock.seconds_left(10) is None
    clock.step(10, 2.0)
    assert clock.seconds_left(10) == 20.0
    clock.step(10, 1.0)
    assert clock.seconds_left(10) == pytest.approx(19.0)


def test_a_step_without_any_time_divides_by_nothing():
    assert meter().step(10, 0.0).tokens_per_second > 0
