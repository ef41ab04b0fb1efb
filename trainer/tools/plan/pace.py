"""How long a run computes: its arithmetic, over what a machine does in a second."""

import functools
import time
from dataclasses import dataclass

from trainer.config.schema import Config
from trainer.model.shapes import Shapes
from trainer.tools.plan.memory import group_of

GPU_UTILIZATION = 0.40
"""Of the peak in bf16, where nobody has said or measured it. source: 38 to 43 % in The Llama 3 Herd of Models (2024), section 3.3"""

FP8_UTILIZATION = 0.28
"""Of the peak in fp8: 1.4 times the pace of bf16 at twice the peak. Assumed."""

CPU_UTILIZATION = 0.70
"""Of the fp32 product measured on this machine (tests/benchmarks/plan.py)."""

NEWTON_SCHULZ_STEPS = 5

PRODUCT_SIZE, PRODUCT_SECONDS = 1024, 0.12


@dataclass(frozen=True)
class Pace:
    """The share of a device's peak that a run of some kind gets, and where that is from."""

    utilization: float
    source: str


@dataclass(frozen=True)
class Work:
    """The arithmetic of one step, in FLOP."""

    model: float
    """Forward and backward of all processes together, as MFU counts it."""
    again: float
    """Forward passes that are computed a second time (gradient checkpointing)."""
    optimizer: float
    """Products of the optimizer, on each process."""

    @property
    def all(self) -> float:
        """Of one process that is alone."""
        return self.model + self.again + self.optimizer

    def seconds(self, flops_per_second: float, num_processes: int) -> float:
        """Of one step, where each process does so much."""
        return ((self.model + self.again) / num_processes + self.optimizer) / flops_per_second


def work_of(shapes: Shapes, config: Config) -> Work:
    """The arithmetic of a step of this run."""
    length = config.sequence_length
    step_tokens = config.global_batch * length
    frozen = 2.0 * sum(w.numel * w.share for w in shapes.weights if w.is_product and not w.is_trained)
    again = 0.0
    if config.model.gradient_checkpointing:
        in_blocks = sum(w.numel * w.share for w in shapes.block_weights if w.is_product)
        again = 2.0 * in_blocks + 4.0 * shapes.attention_width * length
    products = 0.0
    if config.optimizer.name == "muon":
        matrices = [w.shape for w in shapes.weights if w.is_trained and group_of(w) == "hidden"]
        products = sum(_newton_schulz(min(shape), max(shape)) for shape in matrices)
    return Work(step_tokens * (shapes.flops_per_token(length) - frozen), step_tokens * again, products)


def _newton_schulz(short: int, long: int) -> float:
    """FLOP of Muon's iteration on one matrix: two products with the long side, one without, five times."""
    return NEWTON_SCHULZ_STEPS * (4.0 * short * short * long + 2.0 * short**3)


@functools.cache
def cpu_peak() -> float:
    """FLOP/s of a product in fp32 on all cores of this machine, the best of a tenth of a second; asked once, since it may vary."""
    import numpy as np

    size = PRODUCT_SIZE
    left, right, out = (np.full((size, size), 0.5, dtype=np.float32) for _ in range(3))
    np.matmul(left, right, out=out)
    best, ends = float("inf"), time.perf_counter() + PRODUCT_SECONDS
    while (started := time.perf_counter()) < ends:
        np.matmul(left, right, out=out)
        best = min(best, time.perf_counter() - started)
    return 2.0 * size**3 / best
