import pytest

from trainer.metrics.meters import SpeedMeter


def meter(peak_flops=1e6, num_devices=2):
    return SpeedMeter(flops_per_token=100.0, peak_flops=lambda: peak_flops, num_devices=num_devices)


def test_speed_is_tokens_over_the_time_of_the_step():
    clock = meter()
    clock.resume(10.0)
    speed = clock.step(1000, 10.5)
    assert speed.step_seconds == 0.5 and speed.tokens_per_second == 2000
    assert speed.mfu == pytest.approx(2000 * 100 / 2e6)


def test_a_device_of_unknown_peak_has_no_mfu():
    clock = meter(peak_flops=None)
    clock.resume(0.0)
    assert clock.step(1000, 1.0).mfu is None


def test_a_step_is_measured_by_the_peak_of_its_own_precision():
    peaks = iter([4e6, 1e6])
    clock = SpeedMeter(flops_per_token=100.0, peak_flops=lambda: next(peaks), num_devices=2)
    clock.resume(0.0)
    assert [clock.step(1000, now).mfu for now in (1.0, 2.0)] == [pytest.approx(1e5 / 8e6), pytest.approx(1e5 / 2e6)]


def test_a_pause_is_not_the_time_of_a_step():
    clock = meter()
    clock.resume(0.0)
    clock.step(10, 1.0)
    clock.resume(100.0)
    assert clock.step(10, 101.0).step_seconds == 1.0


def test_the_time_left_follows_the_recent_pace():
    clock = meter()
    assert clock.seconds_left(10) is None
    clock.resume(0.0)
    clock.step(10, 2.0)
    assert clock.seconds_left(10) == 20.0
    clock.step(10, 3.0)
    assert clock.seconds_left(10) == pytest.approx(19.0)


def test_a_clock_that_stands_still_divides_by_nothing():
    clock = meter()
    clock.resume(5.0)
    assert clock.step(10, 5.0).tokens_per_second > 0


def test_a_meter_that_was_never_started_is_a_mistake_in_the_program():
    with pytest.raises(AssertionError, match="resume"):
        meter().step(10, 1.0)
