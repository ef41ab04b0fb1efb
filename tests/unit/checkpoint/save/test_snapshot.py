import io
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.messages import refuses
from trainer.checkpoint.format.file_layout import PAGE_BYTES
from trainer.checkpoint.format.memory_layout import WholeMemoryLayout
from trainer.checkpoint.format.whole_files import WholeFiles
from trainer.checkpoint.save import snapshot
from trainer.checkpoint.save.snapshot import (
    Snapshots,
    free_memory_bytes,
    make_slot,
    slot_bytes_for,
    slots_that_fit,
)
from trainer.errors import CheckpointError

CPU = torch.device("cpu")


@pytest.fixture
def trained():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    optimizer = torch.optim.AdamW([{"params": [p]} for p in model.parameters()], lr=0.5, fused=True)
    step(model, optimizer)
    return model, optimizer


def step(model, optimizer):
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()


def snapshots_of(model, optimizer, number=2):
    slots = [make_slot(index, 1 << 20, CPU) for index in range(number)]
    snapshots = Snapshots(model, optimizer, slots, CPU, WholeFiles())
    snapshots.lay_out()
    return snapshots


@pytest.mark.parametrize(
    ("free", "total", "expected"), [(100, 100, 2), (31, 100, 2), (29, 100, 1), (19, 100, 0), (5, 100, 0), (0, 0, 0)]
)
def test_slots_leave_a_tenth_of_the_memory_free(free, total, expected):
    assert slots_that_fit(10, free, total) == expected


def test_the_free_memory_is_that_of_the_machine_or_less():
    assert 0 < free_memory_bytes() <= 1 << 50


def test_a_snapshot_does_not_change_when_training_goes_on(trained):
    model, optimizer = trained
    snapshots = snapshots_of(model, optimizer)
    snapshots.copy(snapshots.slots[0], 1)
    before = bytes(snapshots.slots[0].memory)
    step(model, optimizer)
    snapshots.copy(snapshots.slots[1], 2)
    assert bytes(snapshots.slots[0].memory) == before and snapshots.slots[0].step == 1
    assert bytes(snapshots.slots[1].memory) != before


def test_learning_rates_are_those_of_the_snapshot_s_step(trained):
    model, optimizer = trained
    snapshots = snapshots_of(model, optimizer)
    for number, group in enumerate(optimizer.param_groups):
        group["lr"] = 0.125 + number
    assert snapshots.is_laid_out(), "another rate is no other layout"
    snapshots.copy(snapshots.slots[0], 1)
    image, start = snapshots.layout.images[1], snapshots.layout.starts[1]
    content = snapshots.slots[0].memory[start : start + image.num_bytes]
    loaded = torch.load(io.BytesIO(content), weights_only=True)
    assert [group["lr"] for group in loaded["param_groups"]] == [0.125, 1.125, 2.125, 3.125]


@pytest.mark.parametrize("change", ["moments", "hyperparameter", "parameter"])
def test_what_a_layout_does_not_fit_any_more_is_noticed(trained, change):
    model, optimizer = trained
    snapshots = snapshots_of(model, optimizer)
    if change == "moments":
        optimizer.load_state_dict(optimizer.state_dict())
        optimizer.state[model[0].weight]["exp_avg"] = torch.zeros(7, 5)
    elif change == "hyperparameter":
        optimizer.param_groups[0]["weight_decay"] = 0.7
    else:
        model[0].weight.data = torch.zeros(7, 5)
    assert not snapshots.is_laid_out()
    snapshots.lay_out()
    assert snapshots.is_laid_out()


def test_room_is_foreseen_before_the_optimizer_has_its_moments(trained):
    model, optimizer = trained
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    assert WholeMemoryLayout(model, optimizer).num_bytes + PAGE_BYTES <= slot_bytes_for(
        parameters, 2 * parameters, 4 * 4
    )


def test_weights_that_lie_otherwise_in_memory_are_refused_by_name():
    model = nn.Linear(3, 2)
    model.weight = nn.Parameter(torch.ones(3, 2).t())
    with refuses(CheckpointError, "weight", "checkpoint.asynchronous=false"):
        WholeMemoryLayout(model, torch.optim.AdamW(model.parameters()))


def test_a_snapshot_for_which_too_little_memory_was_set_aside_is_refused(trained):
    model, optimizer = trained
    with refuses(CheckpointError, "checkpoint.asynchronous=false"):
        Snapshots(model, optimizer, [make_slot(0, PAGE_BYTES, CPU)], CPU, WholeFiles()).lay_out()


@pytest.mark.parametrize("refused", [True, False])
def test_memory_that_cannot_be_pinned_is_told_and_leaves_no_error_behind_for_the_next_kernel(
    monkeypatch, caplog, refused
):
    """As CUDA does it: a refusal stays its last error until something asks for that, and what asks first is a kernel's start."""
    pending, kernels = [], []

    def register(*_):
        pending.extend(["out of memory"] if refused else [])
        return 2 if refused else 0

    def start_kernel(device):
        kernels.append(device)
        if pending:
            raise RuntimeError(f"CUDA error: {pending.pop()}")

    monkeypatch.setattr(torch.cuda, "cudart", lambda: SimpleNamespace(cudaHostRegister=register))
    monkeypatch.setattr(snapshot, "_start_kernel", start_kernel)
    slot = snapshot.make_slot(0, PAGE_BYTES, torch.device("cuda"))
    assert not pending and len(kernels) == (2 if refused else 0) and len(slot.pages) == PAGE_BYTES
    assert ("CUDA error 2" in caplog.text) == refused


def test_a_device_that_has_failed_for_another_reason_is_not_taken_for_that(monkeypatch):
    def start_kernel(device):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "cudart", lambda: SimpleNamespace(cudaHostRegister=lambda *_: 2))
    monkeypatch.setattr(snapshot, "_start_kernel", start_kernel)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        snapshot.make_slot(0, PAGE_BYTES, torch.device("cuda"))
