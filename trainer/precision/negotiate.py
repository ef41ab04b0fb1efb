"""From what the cluster file asks to the one precision that all ranks compute in."""

import logging
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from trainer.config.schema import Config, PrecisionConfig
from trainer.precision.convert import misfit
from trainer.precision.decide import Decision, agree, check_required, decide, idle_settings
from trainer.precision.measured import Measured
from trainer.precision.probe import probe_device
from trainer.precision.recipes import uncompiled_because
from trainer.precision.timing import timed

log = logging.getLogger(__name__)


def negotiate(proposed: Decision, wanted: PrecisionConfig, gather: Callable[[Decision], list[Decision]]) -> Decision:
    """Decides with the ranks together, from what each of them proposes.

    gather   gives the values of all ranks
    raises   PrecisionError where a fallback is refused
    """
    if idle := idle_settings(proposed.asked, wanted):
        log.info(idle)
    agreed = agree(gather(proposed))
    check_required(agreed, wanted)
    return agreed


def propose(
    asked: str, config: Config, device_type: str, model: Callable[[], nn.Module], measured: Measured | None = None
) -> Decision:
    """What this process's current device gives for this model and batch.

    model      makes the run's model on the meta device, asked for its shapes where fp8 is possible
    measured   what `bench precision` found for such a run, the same on every rank: `auto` takes the fastest of it
    raises     PrecisionError where the precision block asks for what the recipe does not have
    """
    wanted = config.precision
    fastest = measured.fastest if measured and wanted.recipe == "auto" else None
    if fastest:
        wanted = wanted.model_copy(update={"recipe": fastest})
    facts = probe_device(device_type, wanted if asked == "fp8" else None)
    decision = decide(asked, facts, wanted)
    if decision.mode == "fp8":
        batch = {"micro_batch": config.micro_batch, "sequence_length": config.sequence_length}
        decision = decide(asked, facts, wanted, misfit(model(), decision.fp8_recipe, wanted, **batch))
    if decision.mode == "fp8" and fastest and measured:
        decision = replace(decision, reason=f"{decision.reason}; {measured.words()}")
    return timed(decision, device_type)


def uncompiled(decision: Decision) -> str | None:
    """Why torch.compile is left out with this precision; None when it need not be."""
    if decision.mode != "fp8":
        return None
    major, minor = torch.__version__.split(".")[:2]
    return uncompiled_because(decision.fp8_recipe, (int(major), int(minor)))
