"""Finds the other processes of a run, and with them the precision that all compute in."""

import logging

import torch
from accelerate import Accelerator

from trainer import files
from trainer.collectives import all_gather
from trainer.config.batch import accumulation_steps
from trainer.config.folders import run_folder
from trainer.config.schema import Config
from trainer.errors import ConfigError
from trainer.launch.accelerator import device_words, make_accelerator
from trainer.launch.environment import LaunchEnv
from trainer.launch.logging_setup import open_log
from trainer.launch.process_group import init_process_group
from trainer.metrics.console import console_handler
from trainer.model.unrolled import uncompiled_because
from trainer.precision.decide import Decision, tf32_sentence
from trainer.precision.measured import Measured, find
from trainer.precision.negotiate import negotiate, propose, uncompiled
from trainer.run.identity import speed_conditions
from trainer.run.out_of_memory import record_memory_history
from trainer.run.prepared import blocks_of, model_type_of

log = logging.getLogger(__name__)


def join(config: Config) -> tuple[Accelerator, Decision]:
    """Finds the other processes, and with them the precision that all compute in."""
    place = LaunchEnv.from_env()
    accumulation_steps(config.global_batch, config.micro_batch, place.world_size)
    open_log(run_folder(config), is_main=place.is_main, console=console_handler())
    device = init_process_group(place, deterministic=config.deterministic)
    _check_length(config)
    measured = measured_gain(config, place, device) if place.precision == "fp8" else None
    proposed = propose(place.precision, config, device.type, lambda: blocks_of(config), measured)
    decision = negotiate(proposed, config.precision, all_gather)
    accelerator = make_accelerator(
        place,
        precision=decision.mode,
        deterministic=config.deterministic,
        seed=config.seed,
        trackers=config.metrics.trackers,
        runs_folder=files.project_folder() / config.runs_folder,
        uncompiled=uncompiled(decision) or uncompiled_because(model_type_of(config), use_cpu=device.type == "cpu"),
        tf32=config.precision.tf32,
    )
    log.info("%s: %s", config.name, device_words(accelerator))
    if config.profile.memory_history and accelerator.device.type == "cuda":
        record_memory_history()
    log.info(decision.sentence)
    if place.is_main and (slow := decision.slow_warning):
        log.warning(slow)
    if sentence := tf32_sentence(decision.mode, device.type, config.precision.tf32):
        log.info(sentence)
    warning = measured.warning(decision.fp8_recipe.name) if measured and decision.mode == "fp8" else None
    if place.is_main and warning:
        log.warning(warning)
    return accelerator, decision


def _check_length(config: Config) -> None:
    """Refuses processes that would take different numbers of steps, as machines whose recipe or data differ make of max_epochs."""
    by_rank = all_gather(config.max_steps)
    if len(set(by_rank)) > 1:
        steps = ", ".join(map(str, by_rank))
        raise ConfigError(
            f"max_steps is not the same in all processes, but by rank: {steps}; give all machines the same recipe and data"
        )


def measured_gain(config: Config, place: LaunchEnv, device: torch.device) -> Measured | None:
    """What `bench precision` found for such a run, as rank 0 reads it; None where another rank has another device."""
    conditions = speed_conditions(config, place.world_size, device)
    found = all_gather((conditions, find(run_folder(config).parent, conditions) if place.is_main else None))
    return found[0][1] if all(others == conditions for others, _ in found) else None
