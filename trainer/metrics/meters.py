"""Tokens a second, MFU and the time left: pure arithmetic on times that were measured."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Speed:
    """How fast one step went."""

    step_seconds: float
    tokens_per_second: float
    mfu: float | None
    """Share (0..1) of the devices' peak that the model's own FLOPs reach; None where the peak is unknown."""


class SpeedMeter:
    """Turns the time that each step took into speeds."""

    def __init__(self, *, flops_per_token: float, peak_flops: Callable[[], float | None], num_devices: int) -> None:
        """`peak_flops` of one device in FLOP/s, None when unknown; asked at each step, since a run may change its precision."""
        self._flops_per_token, self._peak_flops, self._num_devices = flops_per_token, peak_flops, num_devices
        self._smooth_seconds: float | None = None

    def step(self, num_tokens: int, seconds: float) -> Speed:
        """One step took so long, without pauses."""
        seconds = max(seconds, 1e-9)
        smooth = self._smooth_seconds
        self._smooth_seconds = seconds if smooth is None else 0.9 * smooth + 0.1 * seconds
        rate = num_tokens / seconds
        peak = self._peak_flops()
        mfu = rate * self._flops_per_token / (peak * self._num_devices) if peak else None
        return Speed(seconds, rate, mfu)

    def seconds_left(self, steps_left: int) -> float | None:
        """The time the rest will take at the recent pace, without evaluations and saves; None before the first step."""
        return None if self._smooth_seconds is None else steps_left * self._smooth_seconds
