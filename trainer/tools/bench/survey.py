"""What this machine can do, asked in a process of its own: it ends before anything is measured, and takes its hold on the GPU with it."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from typing import Any

from trainer.config.cluster import Cluster
from trainer.config.schema import Config, PrecisionConfig, precision_contradictions
from trainer.errors import LaunchError, PrecisionError
from trainer.precision.decide import Decision
from trainer.precision.recipes import RECIPES


@dataclass(frozen=True)
class Survey:
    """What one process of the run would find."""

    decisions: dict[str, Decision]
    """By `bf16` and each fp8 recipe's name."""
    conditions: dict[str, Any]
    """What decides about the speed of this run (run/identity.py)."""


def survey(config: Config, cluster: Cluster) -> Survey:
    """Looks at the first device that a run under this cluster file would have. raises LaunchError when that ends the process"""
    spawn = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, mp_context=spawn) as processes:
            return processes.submit(look, config, cluster.use_cpu, cluster.num_processes).result()
    except BrokenProcessPool:
        raise LaunchError(
            "the process that looked at what this machine can do about precision died without a word; `python -c 'import torch, "
            "transformer_engine.pytorch'` is likely to show why"
        ) from None


def look(config: Config, use_cpu: bool, num_processes: int) -> Survey:
    import torch

    from trainer.precision.negotiate import negotiate, propose
    from trainer.run.identity import speed_conditions
    from trainer.run.prepared import blocks_of

    device = torch.device("cpu" if use_cpu or not torch.cuda.is_available() else "cuda:0")

    def settled(asked: str, wanted: PrecisionConfig) -> Decision:
        variant = config.model_copy(update={"precision": wanted})
        try:
            proposed = propose(asked, variant, device.type, lambda: blocks_of(config))
            decision = negotiate(proposed, wanted, lambda decision: [decision])
        except PrecisionError as error:  # a format or an option that this recipe does not have
            return Decision(asked, "bf16", str(error))
        excluded = precision_contradictions(variant)
        return replace(decision, mode="bf16", reason=excluded[0]) if decision.mode == "fp8" and excluded else decision

    decisions = {"bf16": settled("bf16", PrecisionConfig())}
    for name in RECIPES:
        decisions[name] = settled("fp8", config.precision.model_copy(update={"recipe": name, "required": False}))
    return Survey(decisions, speed_conditions(config, num_processes, device))
