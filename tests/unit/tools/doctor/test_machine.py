"""Driver and GPUs, with the driver's library played."""

from types import SimpleNamespace

import pynvml
import pytest

from trainer.tools.doctor import machine
from trainer.tools.doctor.machine import Gpu


@pytest.fixture
def driver(monkeypatch):
    """A driver with some GPUs, each a function to raise or the facts that it says."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def says(index, fact):
        if fact in made[index]:
            return made[index][fact]
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    def make(*gpus, opening=None):
        made[:] = gpus

        def init():
            if opening is not None:
                raise pynvml.NVMLError(opening)

        monkeypatch.setattr(pynvml, "nvmlInit", init)

    made = []
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlSystemGetDriverVersion", lambda: "580.95.05")
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: len(made))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lambda index: says(index, "name"))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lambda index: SimpleNamespace(total=says(index, "memory")))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCudaComputeCapability", lambda index: says(index, "capability"))
    return make


H100 = {"name": "NVIDIA H100 80GB HBM3", "memory": 85_520_809_984, "capability": [9, 0]}


def test_gpus_are_told_by_name_memory_and_capability(driver, monkeypatch):
    driver(H100, H100)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    found = machine.read_machine()
    assert found.gpus == (Gpu("NVIDIA H100 80GB HBM3", 85_520_809_984, (9, 0)),) * 2
    assert (found.driver, found.problem, found.num_visible) == ("580.95.05", None, 1)


def test_what_a_gpu_does_not_say_is_left_open(driver):
    driver({"name": "NVIDIA GB10", "capability": [12, 1]}, {})
    assert machine.read_machine().gpus == (Gpu("NVIDIA GB10", None, (12, 1)), Gpu("an unknown GPU", None, None))


def test_no_driver_is_no_problem_and_a_broken_one_is_told(driver):
    driver(opening=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    found = machine.read_machine()
    assert (found.driver, found.problem, found.gpus, found.num_visible) == (None, None, (), 0)
    driver(opening=pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)
    assert "version mismatch" in machine.read_machine().problem


def test_a_gpu_that_is_lost_in_the_middle_does_not_end_the_doctor(driver, monkeypatch):
    def lost(index):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)

    driver(H100)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lost)
    found = machine.read_machine()
    assert found.gpus == ()
    assert "lost" in found.problem
