"""What a run would take, found before anything of it is started: model, arithmetic, memory, days, checkpoints, cost."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from trainer.config.batch import accumulation_steps
from trainer.config.cluster import Cluster
from trainer.config.schema import Config
from trainer.errors import ConfigError
from trainer.gpus import KNOWN_GPUS, memory_bytes, peak_flops
from trainer.host_checks import machine_bytes
from trainer.model.shapes import Shapes
from trainer.model.unrolled import uncompiled_because
from trainer.text import did_you_mean
from trainer.tools.doctor.machine import read_machine
from trainer.tools.plan.known import Data, built_shapes, data_of, shapes_of
from trainer.tools.plan.memory import FP32, Memory, Setting, memory_of, moment_bytes
from trainer.tools.plan.pace import CPU_UTILIZATION, FP8_UTILIZATION, GPU_UTILIZATION, Pace, Work, cpu_peak, work_of
from trainer.tools.plan.remedy import nearest_change
from trainer.tools.plan.storage import Storage, storage_of

USUAL = ("B200", "H200", "H100", "A100 80GB", "A100 40GB", "L40S", "RTX 4090")
"""Shown where nobody names a GPU and this machine has none."""

SHOWN = "H100"
"""Whose memory is shown by part then."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a person wants it to be reckoned with."""

    gpu: str | None = None
    mfu: float | None = None
    price: float | None = None
    """Of one GPU for an hour."""
    pace: Pace | None = None
    """Measured by another run."""
    exact: bool = False


@dataclass(frozen=True)
class Device:
    """What one process computes on; None for what is not known."""

    name: str
    memory_bytes: float | None
    peak_flops: float | None


@dataclass(frozen=True)
class Fit:
    """What a run comes to on one kind of device; None for what is not known."""

    device: Device
    memory: Memory
    needed_bytes: float
    """Of each GPU; of a CPU's machine as a whole."""
    fits: bool | None
    change: str | None
    """The nearest change with which it would fit, where it does not."""
    step_seconds: float | None
    train_seconds: float | None
    evaluation_seconds: float | None
    mfu: float | None
    price: float | None
    """Of the whole run."""


@dataclass(frozen=True)
class Plan:
    """Everything that is said."""

    config: Config
    cluster: Cluster
    data: Data
    shapes: Shapes
    is_built: bool
    """Whether the model was built to be counted."""
    setting: Setting
    work: Work
    fits: tuple[Fit, ...]
    """By device; the first is the one that the rest is about."""
    activations: tuple[float, float]
    """Without and with gradient checkpointing."""
    storage: Storage
    pace: Pace | None
    """None: unknown."""

    @property
    def tokens(self) -> int:
        return self.config.max_steps * self.config.global_batch * self.config.sequence_length


def plan_of(config: Config, cluster: Cluster, asked: Asked, say: Callable[[str], None]) -> Plan:
    """The plan of a run under a cluster file.

    say     hears what takes longer than half a second
    raises  TrainerError where a launch would refuse these settings, as far as they are looked at
    """
    data = data_of(config)
    shapes = None if asked.exact else shapes_of(config, data)
    is_built = shapes is None
    if shapes is None:
        say("building the model on the meta device (importing torch)")
        shapes = built_shapes(config, data)
    setting = _setting(config, cluster, shapes)
    work = work_of(shapes, config)
    pace = _pace(asked, cluster)
    reckoning = _Reckoning(config, cluster, data, shapes, setting, work, asked, pace)
    fits = tuple(reckoning.fit(device) for device in _devices(asked, cluster))
    kinds = (replace(setting, is_checkpointed=again) for again in (False, True))
    without, again = (memory_of(shapes, config.optimizer, kind, None).activations for kind in kinds)
    saved = FP32 * sum(weight.numel for weight in shapes.weights) + moment_bytes(shapes, config.optimizer)
    storage = storage_of(
        config,
        saved,
        step_seconds=fits[0].step_seconds,
        sequences_per_epoch=data.train_tokens and data.train_tokens // config.sequence_length,
        has_validation=bool(config.data.corpus or config.data.validation),
        on_cpu=cluster.use_cpu,
        has_twins=setting.shards == 1 and cluster.num_processes > 1,
    )
    return Plan(config, cluster, data, shapes, is_built, setting, work, fits, (without, again), storage, pace)


def _setting(config: Config, cluster: Cluster, shapes: Shapes) -> Setting:
    unrolled = uncompiled_because(shapes.model_type, use_cpu=cluster.use_cpu)
    return Setting(
        micro_batch=config.micro_batch,
        sequence_length=config.sequence_length,
        accumulation=accumulation_steps(config.global_batch, config.micro_batch, cluster.num_processes),
        precision=cluster.precision,
        is_compiled=cluster.compiler == "inductor" and unrolled is None,
        is_checkpointed=config.model.gradient_checkpointing,
        on_cpu=cluster.use_cpu,
        shards=cluster.num_processes if cluster.is_sharded else 1,
    )


def _pace(asked: Asked, cluster: Cluster) -> Pace | None:
    """The share of the peak that is reckoned with."""
    if asked.mfu is not None:
        return Pace(asked.mfu, "as given by --mfu")
    if asked.pace is not None:
        return asked.pace
    if cluster.use_cpu:
        return Pace(CPU_UTILIZATION, "assumed") if cluster.precision == "no" else None
    return Pace(FP8_UTILIZATION if cluster.precision == "fp8" else GPU_UTILIZATION, "assumed")


def _devices(asked: Asked, cluster: Cluster) -> Sequence[Device]:
    """What it may run on: what was named, what this machine has, or what is usual."""
    if cluster.use_cpu:
        return [Device("this machine's CPUs", machine_bytes(), cpu_peak())]
    if asked.gpu is not None:
        return [_named(asked.gpu, cluster.precision)]
    here = {gpu.name: gpu.memory_bytes for gpu in read_machine().gpus}
    if here:
        return [
            Device(name, there or memory_bytes(name), peak_flops(name, cluster.precision))
            for name, there in here.items()
        ]
    return [_named(name, cluster.precision) for name in (SHOWN, *(name for name in USUAL if name != SHOWN))]


def _named(name: str, precision: str) -> Device:
    """A GPU that a person names. raises ConfigError where the table has none like it"""
    if memory_bytes(name) is None and peak_flops(name, "fp16") is None:
        raise ConfigError(f"--gpu {name!r} is not in the table of GPUs; {did_you_mean(name.upper(), KNOWN_GPUS)}")
    return Device(name, memory_bytes(name), peak_flops(name, precision))


@dataclass(frozen=True)
class _Reckoning:
    """What does not depend on the device."""

    config: Config
    cluster: Cluster
    data: Data
    shapes: Shapes
    setting: Setting
    work: Work
    asked: Asked
    pace: Pace | None

    def fit(self, device: Device) -> Fit:
        memory = self._memory(device, self.setting)
        needed = self._needed(memory)
        fits = None if device.memory_bytes is None else needed <= device.memory_bytes
        change = self._change(device, device.memory_bytes) if fits is False and device.memory_bytes else None
        seconds = self._step_seconds(device)
        train = seconds and seconds * self.config.max_steps
        evaluation = self._evaluation_seconds(seconds)
        peak = device.peak_flops and device.peak_flops * (1 if self.cluster.use_cpu else self.cluster.num_processes)
        mfu = self.work.model / seconds / peak if seconds and peak else None
        hours = (train + (evaluation or 0.0)) / 3600 if train else None
        price = (
            self.asked.price * hours * self.cluster.num_processes if self.asked.price is not None and hours else None
        )
        return Fit(device, memory, needed, fits, change, seconds, train, evaluation, mfu, price)

    def _memory(self, device: Device, setting: Setting) -> Memory:
        return memory_of(self.shapes, self.config.optimizer, setting, device.memory_bytes)

    def _needed(self, memory: Memory) -> float:
        """Of a GPU; or of the machine whose processes all compute in its memory, where the snapshots are too."""
        # A rank of a sharded model builds all of it before it keeps its part.
        one = max(memory.on_device, FP32 * sum(weight.numel for weight in self.shapes.weights))
        if not self.cluster.use_cpu:
            return one
        slots = memory.snapshots if self.config.checkpoint.asynchronous else 0.0
        return one * self.cluster.num_local_processes + slots

    def _change(self, device: Device, there: float) -> str | None:
        def fits(setting: Setting) -> bool:
            return self._needed(self._memory(device, setting)) <= there

        return nearest_change(self.setting, self.config.global_batch, self.cluster.num_processes, fits)

    def _step_seconds(self, device: Device) -> float | None:
        if device.peak_flops is None or self.pace is None:
            return None
        speed = device.peak_flops * self.pace.utilization
        processes = 1 if self.cluster.use_cpu else self.cluster.num_processes
        if self.asked.mfu is not None:  # MFU counts progress only
            return self.work.model / (speed * processes)
        return self.work.seconds(speed, processes)

    def _evaluation_seconds(self, step_seconds: float | None) -> float | None:
        """Forward passes over the held-out text, a third of the arithmetic of training on it."""
        length, held_out = self.config.sequence_length, self.data.validation_tokens
        known = [n for n in (self.config.evaluation.num_sequences, held_out and held_out // length) if n]
        if step_seconds is None or not known:
            return None
        times = -(-self.config.max_steps // self.config.evaluation.every_steps)
        return step_seconds / 3 * min(known) / self.config.global_batch * times
