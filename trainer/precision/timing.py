"""How fast a precision is on this very device: one small product in it, beside the same in fp32."""

import time
from collections.abc import Callable
from dataclasses import replace

import torch

from trainer.precision.decide import Decision

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""What a mode of Accelerate multiplies in; the others have no product of their own to time, or are timed elsewhere (fp8's probe)."""

WIDTHS = {"cpu": 256, "cuda": 4096}
"""Of the square matrices, by the kind of device: milliseconds, and enough work that the arithmetic decides."""

REPEATS = 5
ENOUGH_SECONDS = 0.25
"""Products that take longer together are not repeated."""


def timed(decision: Decision, device_type: str) -> Decision:
    """The decision, with the speed of its mode over fp32's on this process's current device; unchanged where there is nothing to time."""
    dtype = DTYPES.get(decision.mode)
    return decision if dtype is None else replace(decision, speed=speed_over_fp32(dtype, device_type))


def speed_over_fp32(dtype: torch.dtype, device_type: str) -> float:
    """How many times as fast a product in `dtype` is as one in fp32."""
    width = WIDTHS[device_type]
    return product_seconds(torch.float32, device_type, width) / product_seconds(dtype, device_type, width)


def product_seconds(dtype: torch.dtype, device_type: str, width: int) -> float:
    """The shortest time of some products of square matrices; random state is left alone.

    The first is not counted: it makes handles, threads and code, on a GPU a thousand times what the product takes.
    """
    left, right = (torch.full((width, width), 0.01, device=device_type, dtype=dtype) for _ in range(2))
    wait: Callable[[], object] = torch.cuda.synchronize if device_type == "cuda" else lambda: None
    counted: list[float] = []
    for number in range(1 + REPEATS):
        wait()
        started = time.perf_counter()
        left @ right
        wait()
        seconds = time.perf_counter() - started
        if number:
            counted.append(seconds)
        if sum(counted) > ENOUGH_SECONDS:
            break
    return min(counted)
