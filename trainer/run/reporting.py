"""What a run reports and samples: its Reporter and its Probes, for its settings and its machine."""

import logging

import torch
from accelerate import Accelerator

from trainer.checkpoint.format.manifest import Description
from trainer.config.folders import checkpoints_folder, run_folder
from trainer.config.schema import Config
from trainer.gpus import peak_flops
from trainer.journal import Journal
from trainer.launch.environment import num_local_processes
from trainer.metrics.details import detail_interval
from trainer.metrics.hardware import HardwareSampler
from trainer.metrics.meters import SpeedMeter
from trainer.metrics.probes import Probes, histogram_interval
from trainer.metrics.reporter import Reporter
from trainer.metrics.slow_alarm import SlowAlarm
from trainer.metrics.tags import EXPERTS, FP8, FP8_FIT, FP8_GAP, GPU, MFU, TASKS, VALIDATION
from trainer.model.flops import flops_per_token, parameter_counts, spared_flops_per_token
from trainer.parallel import Parallel
from trainer.precision.decide import Decision
from trainer.precision.monitor import PrecisionMonitor
from trainer.run.experts import ExpertsMonitor
from trainer.run.identity import replay_facts, replay_key
from trainer.safety.parent import launcher_pid
from trainer.text import count

log = logging.getLogger(__name__)


def build_reporter(
    config: Config,
    accelerator: Accelerator,
    model: torch.nn.Module,
    precision: PrecisionMonitor,
    description: Description,
) -> Reporter:
    batch, length, steps = config.global_batch, config.sequence_length, config.max_steps
    flops = flops_per_token(model, length) - spared_flops_per_token(model, length)
    device, decision = accelerator.device, precision.record.decision
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    peak = peak_flops(name, decision.mode)
    parameters = parameter_counts(model)
    log.info(f"model: {parameters.words}, {count(flops)} FLOP a token")
    if model.routing is not None:
        log.info(f"routers of the experts: {model.routing}, and none in the validation loss")
    step = f"{batch} sequences of {length} = {count(batch * length)} tokens"
    log.info(f"a step: {step}; the run: {steps} steps, {count(batch * length * steps)} tokens")
    if peak is None:
        log.info("MFU: unknown, because the peak of this device is not known")

    def peak_now() -> float | None:
        return peak_flops(name, precision.record.mode)

    folders = {"checkpoints": checkpoints_folder(config), "runs": run_folder(config)}
    facts = replay_facts(config, accelerator, decision, description, model.head_way, model.routing)
    return Reporter(
        accelerator,
        run_folder(config),
        config.metrics,
        name=config.name,
        max_steps=steps,
        sample=HardwareSampler(device, folders, num_local_processes=num_local_processes()).sample,
        slow_alarm=SlowAlarm(
            config.metrics.slow_ratio,
            Journal(run_folder(config)),
            launcher_pid=launcher_pid(),
            kind_of_step=lambda step: (precision.record.mode, is_profiled(config, step)),
        ),
        features=_features(
            config, accelerator, decision, has_peak=peak is not None, has_experts=model.routing is not None
        ),
        meter=SpeedMeter(flops_per_token=flops, peak_flops=peak_now, num_devices=accelerator.num_processes),
        replay_key=replay_key(facts),
        replay_facts=facts,
    )


def _features(
    config: Config, accelerator: Accelerator, decision: Decision, *, has_peak: bool, has_experts: bool
) -> set[str]:
    """What this run has that others lack: TensorBoard gets charts for it."""

    def in_fp8(every_steps: int) -> bool:
        return decision.mode == "fp8" and 0 < every_steps <= config.max_steps

    found = {
        MFU: has_peak,
        VALIDATION: bool(config.data.corpus or config.data.validation),
        TASKS: bool(config.evaluation.tasks),
        EXPERTS: has_experts,
        FP8: decision.asked == "fp8",  # a fallback draws that nothing is in it
        FP8_FIT: in_fp8(config.precision.statistics_every_steps),
        FP8_GAP: in_fp8(config.precision.shadow_every_steps),
        GPU: accelerator.device.type == "cuda",
    }
    return {feature for feature, is_there in found.items() if is_there}


def is_profiled(config: Config, step: int) -> bool:
    first, last = config.profile.steps or (1, 0)
    return first <= step <= last


def build_probes(config: Config, parallel: Parallel, model: torch.nn.Module) -> Probes:
    return Probes(
        model,
        detail_every_steps=detail_interval(config.metrics.detail_every_steps, config.max_steps),
        runs_here=parallel.runs_here(Probes.READS),
        histogram_every_steps=histogram_interval(config.metrics.histogram_every_steps, config.max_steps),
    )


def build_experts(config: Config, accelerator: Accelerator, model: torch.nn.Module) -> ExpertsMonitor:
    every = detail_interval(config.metrics.detail_every_steps, config.max_steps)
    return ExpertsMonitor(model, accelerator, load_every_steps=every)
