"""What the machine is doing: its GPUs through NVML, its processors, memory and disks through psutil, and torch's own memory.

Sampled now and then by whoever calls `sample`, which need not be the training thread. A value that cannot be had is absent, never 0; why
it cannot is logged once, and ends nothing.
"""

import logging
import os
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import torch

from trainer import files
from trainer.text import numbered

log = logging.getLogger(__name__)

TAGS = {
    "gpu/utilization_fraction/{gpu}": ("fraction", "Share of the last moments in which a kernel ran on the GPU."),
    "gpu/memory_bytes/{gpu}": ("bytes", "Memory of the GPU in use, by anybody."),
    "gpu/power_watts/{gpu}": ("watts", "Power that the GPU draws."),
    "gpu/temperature_celsius/{gpu}": ("degrees Celsius", "Temperature of the GPU's chip."),
    "gpu/sm_clock_hertz/{gpu}": ("hertz", "Clock of the GPU's multiprocessors."),
    "gpu/slowed_by_heat/{gpu}": ("0 or 1", "Whether heat holds the GPU's clocks down."),
    "gpu/slowed_by_power/{gpu}": ("0 or 1", "Whether the power limit or the power supply holds the GPU's clocks down."),
    "host/cpu_fraction": (
        "fraction",
        "Share of all processors' time that was used since the sample before, by anybody.",
    ),
    "host/load": ("processes", "Processes that ran or waited to run, on average of a minute."),
    "host/process_memory_bytes": (
        "bytes",
        "Resident memory of this process and its children; shared pages count in each.",
    ),
    "host/available_memory_bytes": ("bytes", "Memory of the machine that can still be had."),
    "host/swap_used_bytes": ("bytes", "Memory of the machine that was swapped out to a disk."),
    "disk/free_bytes/{folder}": ("bytes", "Room left on the disk of the folder."),
    "disk/read_bytes_per_second": ("bytes a second", "What all disks read since the sample before."),
    "disk/written_bytes_per_second": ("bytes a second", "What was written to all disks since the sample before."),
    "memory/allocated_bytes": ("bytes", "CUDA memory that tensors of this process hold."),
    "memory/reserved_bytes": ("bytes", "CUDA memory that torch keeps for this process, in use or not."),
    "memory/peak_bytes": ("bytes", "The most CUDA memory that tensors held since the sample before."),
    "memory/resident_bytes": ("bytes", "Resident memory of this process, where it computes on a CPU."),
    "memory/peak_resident_bytes": ("bytes", "The most of it since the process began."),
}
"""Tag -> (unit, help); `{gpu}` is the number that CUDA gives the GPU here, `{folder}` a name from the run's folders."""

HEAT, POWER = 0x20 | 0x40, 0x04 | 0x80
"""NVML's reasons for lower clocks: slowed down by software or hardware for heat; the power cap, or the brake of the power supply."""

GPU_READINGS: dict[str, Callable[[ModuleType, Any], float]] = {
    "utilization_fraction": lambda nvml, gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100,
    "memory_bytes": lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used,
    "power_watts": lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
    "temperature_celsius": lambda nvml, gpu: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
    "sm_clock_hertz": lambda nvml, gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM) * 1e6,
    "slowed_by_heat": lambda nvml, gpu: bool(nvml.nvmlDeviceGetCurrentClocksEventReasons(gpu) & HEAT),
    "slowed_by_power": lambda nvml, gpu: bool(nvml.nvmlDeviceGetCurrentClocksEventReasons(gpu) & POWER),
}
"""What is read of each GPU, by the name in its tag."""


class HardwareSampler:
    """Samples this machine, for the one process on it that writes things down."""

    def __init__(
        self,
        device: torch.device,
        folders: Mapping[str, Path],
        *,
        num_local_processes: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`device` is this process's; `folders` are those whose disks matter, by name. On CUDA each local process has one GPU."""
        self._device, self._folders, self._clock = device, folders, clock
        self._logged: set[str] = set()
        self._cpu_times: tuple[float, float] | None = None
        self._disk_counts: tuple[float, int, int] | None = None
        self._gpus: dict[int, Any] = {}
        self._nvml: Any = None
        if device.type == "cuda":
            self._open_gpus(num_local_processes)

    def sample(self) -> dict[str, float]:
        """Each tag's value of now; what is a rate or a share of the time since the sample before is absent in the first one."""
        sources = {
            "processors": self._processors,
            "memory": self._memory,
            "processes": self._processes,
            "disks": self._disks,
            "torch's memory": lambda: torch_memory(self._device),
        }
        values: dict[str, float] = {}
        for name, read in (self._gpu_readings() | self._room_readings()).items():
            with self._logged_once(name):
                values[name] = float(read())
        for what, source in sources.items():
            with self._logged_once(what):
                values.update(source())
        return values

    # GPUs

    def _open_gpus(self, num_local_processes: int) -> None:
        with self._logged_once("NVML"):
            import pynvml  # only where there is CUDA

            pynvml.nvmlInit()
            self._nvml = pynvml
        if self._nvml is None:
            return
        there = torch.cuda.device_count()
        if there < num_local_processes:
            processes, seen = numbered(num_local_processes, "process"), numbered(there, "GPU")
            log.info("hardware: %s here, and this one sees %s: nothing else is sampled", processes, seen)
        for number in range(min(there, num_local_processes)):
            with self._logged_once(f"GPU {number}"):
                self._gpus[number] = gpu_handle(self._nvml, str(torch.cuda.get_device_properties(number).uuid))

    def _gpu_readings(self) -> dict[str, Callable[[], float]]:
        """Tag -> what reads it; a slice of a GPU (MIG) has its own memory, and little else."""
        nvml = self._nvml
        if nvml is None:
            return {}
        return {
            f"gpu/{name}/{number}": partial(read, nvml, handle)
            for number, handle in self._gpus.items()
            for name, read in GPU_READINGS.items()
        }

    def _room_readings(self) -> dict[str, Callable[[], float]]:
        return {f"disk/free_bytes/{name}": partial(files.free_bytes, folder) for name, folder in self._folders.items()}

    # The machine

    def _processors(self) -> dict[str, float]:
        times = psutil.cpu_times()
        # Guests are in user and nice already.
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        idle = times.idle + getattr(times, "iowait", 0.0)
        before, self._cpu_times = self._cpu_times, (total, idle)
        values = {"host/load": os.getloadavg()[0]}
        if before and total > before[0]:
            values["host/cpu_fraction"] = min(1.0, max(0.0, 1 - (idle - before[1]) / (total - before[0])))
        return values

    def _memory(self) -> dict[str, float]:
        available, swapped = float(psutil.virtual_memory().available), float(psutil.swap_memory().used)
        return {"host/available_memory_bytes": available, "host/swap_used_bytes": swapped}

    def _processes(self) -> dict[str, float]:
        own, total = psutil.Process(), 0
        for process in (own, *own.children(recursive=True)):
            try:
                total += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue  # it ended while we looked
        return {"host/process_memory_bytes": float(total)}

    def _disks(self) -> dict[str, float]:
        counts = psutil.disk_io_counters()
        if counts is None:
            raise NotImplementedError("the system counts no disk traffic")
        now = (self._clock(), counts.read_bytes, counts.write_bytes)
        before, self._disk_counts = self._disk_counts, now
        if before is None or now[0] <= before[0]:
            return {}
        read, written = ((now[place] - before[place]) / (now[0] - before[0]) for place in (1, 2))
        return {"disk/read_bytes_per_second": read, "disk/written_bytes_per_second": written}

    @contextmanager
    def _logged_once(self, what: str) -> Iterator[None]:
        """Goes on without what cannot be read, whatever the reason, and says so the first time."""
        try:
            yield
        except Exception as error:
            if what not in self._logged:
                self._logged.add(what)
                log.info("hardware: %s cannot be read (%s: %s), and is left out", what, type(error).__name__, error)


def gpu_handle(nvml: ModuleType, uuid: str) -> Any:
    """NVML's handle of the GPU, or of the slice of one (MIG), that CUDA knows by this UUID.

    CUDA itself numbers its devices as CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER say, and NVML by neither: the UUID is what both mean.

    raises  nvml.NVMLError when it knows none
    """
    try:
        return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except nvml.NVMLError:
        return nvml.nvmlDeviceGetHandleByUUID(f"MIG-{uuid}")


def torch_memory(device: torch.device) -> dict[str, float]:
    """What this process holds: of torch's counters on CUDA, of the system's on a CPU. Begins a new peak on CUDA."""
    if device.type == "cuda":
        counters = torch.cuda.memory_stats(device)
        torch.cuda.reset_peak_memory_stats(device)
        return {
            "memory/allocated_bytes": float(counters["allocated_bytes.all.current"]),
            "memory/reserved_bytes": float(counters["reserved_bytes.all.current"]),
            "memory/peak_bytes": float(counters["allocated_bytes.all.peak"]),
        }
    return {
        "memory/resident_bytes": float(psutil.Process().memory_info().rss),
        "memory/peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0,
    }
