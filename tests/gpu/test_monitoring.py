"""What is measured beside the loss, on a GPU: nothing of it waits for the device, and it changes no bit."""

import pytest
import torch

from trainer.metrics.hardware import HardwareSampler
from trainer.metrics.probes import Probes
from trainer.metrics.stopwatch import Stopwatch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and this machine has none"),
]


@pytest.fixture
def no_waiting():
    """Within the test's own blocks, what waits for the device raises."""

    class NoWaiting:
        def __enter__(self):
            torch.cuda.set_sync_debug_mode("error")

        def __exit__(self, *_):
            torch.cuda.set_sync_debug_mode("default")

    yield NoWaiting()
    torch.cuda.set_sync_debug_mode("default")


def model_of():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(512, 512), torch.nn.Linear(512, 512)).cuda()


def train(model, probes=None, guard=None):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    inputs = torch.ones(4, 512, device="cuda")
    for step in range(1, 6):
        model(inputs).square().sum().backward()
        if probes is None:
            optimizer.step()
        else:
            with guard, probes.around_update(step):
                optimizer.step()
            reading = probes.take()
            assert len(reading.numbers()) == 6 and len(reading.histograms()) == 8
        optimizer.zero_grad()
    return [parameter.tolist() for parameter in model.parameters()]


def test_probes_wait_for_nothing_and_change_nothing(no_waiting):
    model = model_of()
    probes = Probes(model, detail_every_steps=1, histogram_every_steps=1)
    assert train(model, probes, no_waiting) == train(model_of())


def test_the_stopwatch_sees_the_devices_time_and_waits_for_nothing(no_waiting):
    watch, large = Stopwatch(torch.device("cuda")), torch.ones(4096, 4096, device="cuda")
    large @ large
    torch.cuda.synchronize()
    with no_waiting:
        watch.start()
        watch.lap("data")
        for _ in range(20):
            large @ large
        watch.lap("forward_backward")
        times = watch.end_step()
    seconds = times.seconds()
    assert seconds["forward_backward"] > 10 * seconds["data"] >= 0


def test_the_gpu_of_this_process_is_found_by_its_uuid():
    sample = HardwareSampler(torch.device("cuda", 0), {}).sample()
    assert sample["gpu/memory_bytes/0"] > 0 and sample["memory/reserved_bytes"] >= sample["memory/allocated_bytes"]
