import io
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load
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


def half_frozen(trained):
    """The snapshots of a model whose first layer is frozen."""
    model, _ = trained
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    optimizer = torch.optim.AdamW(model[1].parameters(), fused=True)
    step(model[1], optimizer)
    return model, optimizer, snapshots_of(model, optimizer)


def test_what_is_frozen_is_copied_once_and_stands_in_every_snapshot(trained):
    model, optimizer, snapshots = half_frozen(trained)
    pages = snapshots.slots[0].pages
    sources, places = snapshots.layout.copies(pages)
    trained_bytes = sum(p.nbytes for p in model[1].parameters())
    steps = sum(state["step"].nbytes for state in optimizer.state.values())
    assert (
        sum(tensor.nbytes for tensor in sources) == sum(place.nbytes for place in places) == 3 * trained_bytes + steps
    )
    once = snapshots.layout.copies(pages, frozen=True)[0]
    assert sum(tensor.nbytes for tensor in once) == sum(p.nbytes for p in model[0].parameters())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():  # what a copy of it would bring
        model[0].weight.zero_()
    for number, slot in enumerate(snapshots.slots):
        snapshots.copy(slot, number)
        weights = load(bytes(slot.memory[: snapshots.layout.images[0].num_bytes]))
        assert weights.keys() == before.keys() and all(torch.equal(weights[n], before[n]) for n in before)


def test_what_was_frozen_and_lies_elsewhere_now_is_copied_again(trained):
    model, _, snapshots = half_frozen(trained)
    model[0].weight.data = torch.full((7, 5), 2.0)
    assert not snapshots.is_laid_out()
    snapshots.lay_out()
    snapshots.copy(snapshots.slots[1], 3)
    weights = load(bytes(snapshots.slots[1].memory[: snapshots.layout.images[0].num_bytes]))
    assert torch.equal(weights["0.weight"], torch.full((7, 5), 2.0))


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
