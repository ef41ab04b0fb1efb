"""The precision of a run while it trains: an Fp8Monitor where fp8 was decided, else NoFp8, which has nothing to do in a step."""

import logging
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from trainer.config.schema import PrecisionConfig
from trainer.journal import Journal
from trainer.precision.decide import Decision
from trainer.precision.fp8_model import Fp8Model
from trainer.precision.fp8_monitor import Fp8Monitor
from trainer.precision.record import PrecisionRecord

log = logging.getLogger(__name__)


class NoFp8:
    """A run in bf16, fp16 or fp32. Its part of the state is there all the same: over restarts a run may go from fp8 to bf16 and back."""

    def __init__(self, decision: Decision, wanted: PrecisionConfig) -> None:
        self._decision, self._wanted = decision, wanted
        self._state: dict[str, Any] = {"switched_at": None, "gaps_in_a_row": 0}

    @property
    def record(self) -> PrecisionRecord:
        """What the precision is now."""
        return PrecisionRecord(self._decision, self._wanted, last_fp8_step=self._state["switched_at"])

    def check_warm_up(self) -> None:
        """Nothing is checked."""

    def begin(self, step: int) -> None:
        """Nothing is done."""

    def micro_batch(self, number: int) -> None:
        """Nothing is done."""

    def end(self, step: int, inputs: Tensor, labels: Tensor) -> dict[str, float]:
        """By tag; where fp8 was asked for, that none of it is there."""
        return {"precision/fp8_coverage": 0.0} if self._decision.asked == "fp8" else {}

    def give_up_fp8(self, step: int, reason: str) -> bool:
        """A run that would end does so."""
        return False

    def state_dict(self) -> dict[str, Any]:
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keeps what a run in fp8 saved where this launch asked for fp8 too; asking for another precision forgets it."""
        if self._decision.asked == "fp8":
            self._state = {"switched_at": state["switched_at"], "gaps_in_a_row": int(state["gaps_in_a_row"])}


PrecisionMonitor = NoFp8 | Fp8Monitor


def build_monitor(
    fp8: Fp8Model | None,
    decision: Decision,
    wanted: PrecisionConfig,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    flops_per_token: float,
    journal: Journal,
    accumulation: int,
    compiled: bool,
    deterministic: bool,
) -> PrecisionMonitor:
    """Checks what `prepare` made of the model, and logs what computes in fp8; PrecisionError where it is not what was built.

    fp8                the converted model, where fp8 was decided
    model              what `prepare` gave back, unwrapped
    optimizer          what `prepare` gave back
    flops_per_token    of the model, forward and backward (model/flops.py)
    accumulation       micro-batches of a step
    compiled           whether the blocks are compiled: kept fp8 copies of weights would break their graphs
    """
    if fp8 is None:
        return NoFp8(decision, wanted)
    fp8.check_prepared(accelerator.mixed_precision, optimizer)
    coverage = fp8.coverage(flops_per_token)
    fp8.log_coverage(coverage)
    if not fp8.recipe.stateless and accelerator.is_main_process:
        inexact = ", so a resume is not exact to the last bit in spite of deterministic: true" if deterministic else ""
        anew = f"its scales begin anew at each start{inexact}, and each micro-batch waits for all ranks"
        log.warning("delayed scaling has a state that no checkpoint holds: %s", anew)
    caches_weights = wanted.cache_weights and fp8.recipe.stateless and accumulation > 1 and not compiled
    return Fp8Monitor(fp8, coverage, accelerator, model, journal, caches_weights=caches_weights)
