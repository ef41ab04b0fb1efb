"""What a machine says of itself without torch: Python, and by the NVIDIA driver's own library its GPUs."""

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from trainer.config.cluster import count_gpus
from trainer.text import one_line

T = TypeVar("T")


@dataclass(frozen=True)
class Gpu:
    """A GPU by the driver; None where the driver does not say."""

    name: str
    memory_bytes: int | None
    capability: tuple[int, int] | None


@dataclass(frozen=True)
class Machine:
    """What there is."""

    python: str
    cores: int
    driver: str | None
    """The NVIDIA driver's version; None without one that answers."""
    problem: str | None
    """What the driver's library says when it does not answer."""
    gpus: tuple[Gpu, ...]
    """All there are, in the driver's order."""
    num_visible: int
    """How many of them a process started here may use (CUDA_VISIBLE_DEVICES)."""


def read_machine() -> Machine:
    """Looks at this machine; never raises for a driver that is missing or broken."""
    driver, problem, gpus = _driver()
    return Machine(platform.python_version(), len(os.sched_getaffinity(0)), driver, problem, gpus, count_gpus())


def _driver() -> tuple[str | None, str | None, tuple[Gpu, ...]]:
    """The driver's version, or why it does not answer, and its GPUs."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError_LibraryNotFound:
        return None, None, ()
    except pynvml.NVMLError as error:
        return None, one_line(error), ()
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return pynvml.nvmlSystemGetDriverVersion(), None, tuple(_gpu(pynvml, handle) for handle in handles)
    except pynvml.NVMLError as error:  # a GPU that has fallen off the bus
        return None, one_line(error), ()
    finally:
        pynvml.nvmlShutdown()


def _gpu(nvml: Any, handle: Any) -> Gpu:
    def answer(ask: Callable[[Any], T]) -> T | None:
        try:
            return ask(handle)
        except nvml.NVMLError:  # some do not say: memory, where it is the host's
            return None

    memory, capability = answer(nvml.nvmlDeviceGetMemoryInfo), answer(nvml.nvmlDeviceGetCudaComputeCapability)
    name = answer(nvml.nvmlDeviceGetName) or "an unknown GPU"
    return Gpu(name, memory.total if memory else None, tuple(capability) if capability else None)
