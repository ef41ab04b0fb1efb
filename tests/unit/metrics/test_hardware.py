import itertools
import logging
import sys
from collections import namedtuple
from types import ModuleType, SimpleNamespace

import psutil
import pytest
import torch

from tests.messages import logged, names
from trainer.metrics import hardware
from trainer.metrics.hardware import TAGS, HardwareSampler

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
GB = 2**30


class NVMLError(Exception):
    """As NVML raises it."""


class Gpu:
    """What NVML says of one GPU; None where it says that the GPU has no such thing."""

    def __init__(self, uuid, **changes):
        self.uuid = uuid
        self.said = {
            "utilization": 75,
            "memory": 3 * GB,
            "power": 412_500,
            "temperature": 61,
            "clock": 1980,
            "reasons": 0,
            **changes,
        }

    def say(self, what):
        if self.said[what] is None:
            raise NVMLError("Not Supported")
        return self.said[what]


@pytest.fixture
def machine(monkeypatch):
    """Makes a machine whose GPUs NVML numbers otherwise than CUDA; returns what the latter sees."""

    def make(nvml_gpus, cuda_uuids, init=lambda: None):
        nvml = ModuleType("pynvml")
        nvml.NVMLError, nvml.NVML_TEMPERATURE_GPU, nvml.NVML_CLOCK_SM = NVMLError, 0, 1
        nvml.nvmlInit = init

        def by_uuid(uuid):
            for gpu in nvml_gpus:
                if gpu.uuid == uuid:
                    return gpu
            raise NVMLError("Not Found")

        nvml.nvmlDeviceGetHandleByUUID = by_uuid
        nvml.nvmlDeviceGetUtilizationRates = lambda gpu: SimpleNamespace(gpu=gpu.say("utilization"), memory=9)
        nvml.nvmlDeviceGetMemoryInfo = lambda gpu: SimpleNamespace(used=gpu.say("memory"))
        nvml.nvmlDeviceGetPowerUsage = lambda gpu: gpu.say("power")
        nvml.nvmlDeviceGetTemperature = lambda gpu, sensor: gpu.say("temperature")
        nvml.nvmlDeviceGetClockInfo = lambda gpu, clock: gpu.say("clock")
        nvml.nvmlDeviceGetCurrentClocksEventReasons = lambda gpu: gpu.say("reasons")
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cuda_uuids))
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda number: SimpleNamespace(uuid=cuda_uuids[number])
        )
        counters = {"allocated_bytes.all.current": 5, "reserved_bytes.all.current": 9, "allocated_bytes.all.peak": 7}
        monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: dict(counters))
        monkeypatch.setattr(
            torch.cuda,
            "reset_peak_memory_stats",
            lambda device: counters.update({"allocated_bytes.all.peak": counters["allocated_bytes.all.current"]}),
        )

    return make


def gpu_values(sample, number):
    return {
        tag.split("/")[1]: value
        for tag, value in sample.items()
        if tag.startswith("gpu/") and tag.endswith(f"/{number}")
    }


# GPUs


def test_two_gpus_are_read_by_the_numbers_that_cuda_gives_them(machine):
    gpus = [Gpu("GPU-aa", power=100_000), Gpu("GPU-bb", power=None), Gpu("GPU-cc", power=300_000, reasons=0x04 | 0x40)]
    machine(gpus, ["cc", "aa"])
    sample = HardwareSampler(CUDA, {}, num_local_processes=2).sample()
    assert gpu_values(sample, 0) == {
        "utilization_fraction": 0.75,
        "memory_bytes": 3 * GB,
        "power_watts": 300.0,
        "temperature_celsius": 61.0,
        "sm_clock_hertz": 1.98e9,
        "slowed_by_heat": 1.0,
        "slowed_by_power": 1.0,
    }
    assert gpu_values(sample, 1) == gpu_values(sample, 0) | {
        "power_watts": 100.0,
        "slowed_by_heat": 0.0,
        "slowed_by_power": 0.0,
    }
    assert not gpu_values(sample, 2)


def test_only_as_many_gpus_as_processes_are_sampled(machine, caplog):
    caplog.set_level(logging.INFO)
    machine([Gpu("GPU-a"), Gpu("GPU-b")], ["a", "b"])
    sample = HardwareSampler(CUDA, {}, num_local_processes=1).sample()
    assert gpu_values(sample, 0)
    assert not gpu_values(sample, 1)
    assert not caplog.text
    HardwareSampler(CUDA, {}, num_local_processes=4)
    logged(caplog, "4 processes", "2 GPUs")


def test_a_slice_of_a_gpu_has_what_nvml_says_of_it_and_nothing_else(machine, caplog):
    caplog.set_level(logging.INFO)
    machine(
        [Gpu("GPU-whole"), Gpu("MIG-slice", utilization=None, power=None, temperature=None, clock=None, reasons=None)],
        ["slice"],
    )
    sampler = HardwareSampler(CUDA, {})
    for _ in range(3):
        assert gpu_values(sampler.sample(), 0) == {"memory_bytes": 3 * GB}
    assert caplog.text.count("Not Supported") == 6
    logged(caplog, "gpu/power_watts/0", "NVMLError: Not Supported")


def test_a_gpu_that_nvml_does_not_know_is_told_and_left_out(machine, caplog):
    caplog.set_level(logging.INFO)
    machine([Gpu("GPU-a")], ["other", "a"])
    sample = HardwareSampler(CUDA, {}, num_local_processes=2).sample()
    assert not gpu_values(sample, 0)
    assert gpu_values(sample, 1)
    logged(caplog, "GPU 0", "NVMLError: Not Found")


def refuse():
    raise NVMLError("Driver Not Loaded")


@pytest.mark.parametrize("is_there", [True, False])
def test_without_nvml_everything_else_is_sampled_and_the_reason_told_once(machine, is_there, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    machine([Gpu("GPU-a")], ["a"], init=refuse)
    if not is_there:
        monkeypatch.setitem(sys.modules, "pynvml", None)
    sampler = HardwareSampler(CUDA, {})
    for _ in range(2):
        sample = sampler.sample()
        assert not gpu_values(sample, 0)
        assert sample["host/available_memory_bytes"] > 0
    assert (
        len([said for said in caplog.messages if names(said, "NVML", "Driver Not Loaded" if is_there else "pynvml")])
        == 1
    )


def test_nvml_is_not_looked_for_where_a_run_computes_on_a_cpu(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    HardwareSampler(CPU, {}, num_local_processes=2).sample()
    assert not caplog.text


# Memory


def test_on_cuda_the_peak_is_that_since_the_sample_before(machine):
    machine([Gpu("GPU-a")], ["a"])
    sampler = HardwareSampler(CUDA, {})
    first, second = sampler.sample(), sampler.sample()
    assert [first[f"memory/{name}_bytes"] for name in ("allocated", "reserved", "peak")] == [5.0, 9.0, 7.0]
    assert second["memory/peak_bytes"] == 5.0
    assert "memory/resident_bytes" not in first


def test_on_a_cpu_it_is_what_the_process_holds():
    sample = HardwareSampler(CPU, {}).sample()
    assert sample["memory/resident_bytes"] == pytest.approx(psutil.Process().memory_info().rss, rel=0.1)
    assert sample["memory/peak_resident_bytes"] > 0.9 * sample["memory/resident_bytes"]
    assert "memory/peak_bytes" not in sample
    assert sample["host/process_memory_bytes"] >= 0.9 * sample["memory/resident_bytes"]


def test_children_are_counted_and_one_that_ends_meanwhile_is_not_missed(monkeypatch):
    class Process:
        def __init__(self, rss=100, children=()):
            self.rss, self._children = rss, list(children)

        def children(self, recursive):
            assert recursive
            return self._children

        def memory_info(self):
            if self.rss is None:
                raise psutil.NoSuchProcess(1)
            return SimpleNamespace(rss=self.rss)

    monkeypatch.setattr(hardware.psutil, "Process", lambda: Process(children=[Process(None), Process(30)]))
    assert HardwareSampler(CPU, {}).sample()["host/process_memory_bytes"] == 130


# The machine


def test_rates_and_shares_begin_with_the_second_sample(monkeypatch):
    times = namedtuple("scputimes", "user nice system idle iowait guest")
    monkeypatch.setattr(psutil, "cpu_times", iter([times(10, 0, 0, 20, 5, 1), times(13, 0, 0, 25, 7, 3)]).__next__)
    counts = namedtuple("sdiskio", "read_bytes write_bytes")
    monkeypatch.setattr(psutil, "disk_io_counters", iter([counts(100, 1000), counts(300, 9000)]).__next__)
    sampler = HardwareSampler(CPU, {}, clock=iter([50.0, 54.0]).__next__)
    first, second = sampler.sample(), sampler.sample()
    assert not {"host/cpu_fraction", "disk/read_bytes_per_second"} & first.keys()
    assert second["host/cpu_fraction"] == pytest.approx(0.3)
    assert second["disk/read_bytes_per_second"] == 50.0
    assert second["disk/written_bytes_per_second"] == 2000.0


def test_room_is_that_of_each_folders_disk_whether_it_is_there_yet_or_not(tmp_path):
    sample = HardwareSampler(CPU, {"runs": tmp_path, "checkpoints": tmp_path / "not" / "yet"}).sample()
    assert sample["disk/free_bytes/runs"] > 0
    assert sample["disk/free_bytes/checkpoints"] > 0


@pytest.mark.parametrize(
    ("function", "outcome", "missing", "error"),
    [
        (
            "disk_io_counters",
            lambda: None,
            "disk/read_bytes_per_second",
            "NotImplementedError",
        ),
        ("swap_memory", lambda: 1 / 0, "host/swap_used_bytes", "ZeroDivisionError"),
        ("cpu_times", lambda: open("/nowhere"), "host/cpu_fraction", "FileNotFoundError"),
    ],
)
def test_what_the_system_does_not_say_is_absent_and_told_once(monkeypatch, caplog, function, outcome, missing, error):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(psutil, function, outcome)
    sampler = HardwareSampler(CPU, {})
    sampler.sample()
    assert missing not in sampler.sample()
    assert len([said for said in caplog.messages if names(said, error)]) == 1


def test_every_value_has_a_tag_with_its_unit_and_a_sentence(machine, monkeypatch, tmp_path):
    machine([Gpu("GPU-a")], ["a"])
    ticks = itertools.count(1)
    monkeypatch.setattr(psutil, "cpu_times", lambda: namedtuple("scputimes", "user idle")(next(ticks), next(ticks)))
    monkeypatch.setattr(psutil, "disk_io_counters", lambda: SimpleNamespace(read_bytes=1, write_bytes=1))
    found = set()
    for device in (CUDA, CPU):
        sampler = HardwareSampler(device, {"runs": tmp_path})
        sampler.sample()
        found |= sampler.sample().keys()
    assert {tag.replace("/runs", "/{folder}").replace("/0", "/{gpu}") for tag in found} == TAGS.keys()
    assert all(unit and help.endswith(".") for unit, help in TAGS.values())
