"""A file's image, filled with the tensors' bytes, is the file that safetensors or torch would have written."""

import io
import struct
import zipfile

import pytest
import safetensors.torch
import torch
from isal import isal_zlib
from torch import nn

from tests.messages import refuses
from trainer.checkpoint.format import file_layout
from trainer.checkpoint.format.file_layout import PAGE_BYTES, FileImage, model_image, optimizer_image
from trainer.errors import CheckpointError
from trainer.optim.muon_with_adamw import MuonWithAdamW


def filled(image: FileImage) -> bytes:
    """What a snapshot and the writer make of an image together."""
    content = bytearray(image.num_bytes)
    for start, fixed in image.fixed:
        content[start : start + len(fixed)] = fixed
    for start, tensor in image.tensors:
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        content[start : start + len(raw)] = raw
    for checksum in image.checksums:
        crc = isal_zlib.crc32(bytes(content[checksum.start : checksum.start + checksum.num_bytes]))
        for place in checksum.places:
            content[place : place + 4] = struct.pack("<I", crc)
    return bytes(content)


def mixed_model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3).to(torch.bfloat16), nn.Linear(3, 1))
    for name, dtype in (
        ("b", torch.bool),
        ("u", torch.uint8),
        ("h", torch.float16),
        ("d", torch.float64),
        ("i", torch.int32),
    ):
        model.register_buffer(name, torch.ones(3, 2).to(dtype))
    model.register_buffer('a name with ü and "', torch.zeros(()))
    return model


@pytest.mark.parametrize("model", [nn.Linear(4, 4), mixed_model(), nn.Embedding(3, 1)], ids=["plain", "mixed", "tiny"])
def test_the_model_s_image_is_the_file_that_safetensors_writes_byte_for_byte(model, tmp_path):
    state = model.state_dict()
    safetensors.torch.save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    image = model_image(state)
    assert filled(image) == (tmp_path / "model.safetensors").read_bytes()
    assert image.padded_bytes % PAGE_BYTES == 0 and 0 <= image.padded_bytes - image.num_bytes < PAGE_BYTES


def optimizers(model: nn.Module):
    vectors, matrices = [p for p in model.parameters() if p.ndim < 2], [p for p in model.parameters() if p.ndim == 2]
    yield "adamw", torch.optim.AdamW(model.parameters(), fused=True)
    yield "fresh", torch.optim.AdamW(model.parameters())
    yield "sgd", torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    groups = [
        {"params": vectors, "algorithm": "adamw", "lr": 0.1, "weight_decay": 0.0, "name": "vectors"},
        {"params": matrices, "algorithm": "muon", "lr": 0.2, "weight_decay": 0.1, "name": "hidden"},
    ]
    yield "muon", MuonWithAdamW(groups)


@pytest.mark.parametrize("kind", ["adamw", "fresh", "sgd", "muon"])
def test_the_optimizer_s_image_is_a_file_that_torch_loads_to_the_same_bits(kind, tmp_path):
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    optimizer = dict(optimizers(model))[kind]
    if kind != "fresh":
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    state = optimizer.state_dict()
    content = filled(optimizer_image(state))
    loaded = torch.load(io.BytesIO(content), weights_only=True)
    assert loaded["param_groups"] == state["param_groups"]
    assert loaded["state"].keys() == state["state"].keys()
    for number, values in state["state"].items():
        for name, value in values.items():
            torch.testing.assert_close(loaded["state"][number][name], value, rtol=0, atol=0)

    torch.save(state, tmp_path / "optimizer.bin")
    with zipfile.ZipFile(io.BytesIO(content)) as ours, zipfile.ZipFile(tmp_path / "optimizer.bin") as theirs:
        assert ours.testzip() is None, "every checksum is right"
        # The last record names the file by a hash over checksums, which are not known when it is laid out.
        assert [(r.filename, r.CRC, r.header_offset) for r in ours.infolist()[:-1]] == [
            (r.filename, r.CRC, r.header_offset) for r in theirs.infolist()[:-1]
        ]
    assert len(content) == (tmp_path / "optimizer.bin").stat().st_size


def test_a_storage_that_two_entries_share_is_stored_once():
    shared = torch.arange(6.0)
    state = {"state": {0: {"a": shared, "b": shared.view(2, 3)}}, "param_groups": []}
    image = optimizer_image(state)
    assert len(image.tensors) == 1
    loaded = torch.load(io.BytesIO(filled(image)), weights_only=True)["state"][0]
    assert loaded["a"].tolist() == shared.tolist() and loaded["b"].tolist() == shared.view(2, 3).tolist()


def test_a_torch_that_writes_the_file_in_another_way_is_refused(monkeypatch):
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    laid_out = file_layout._laid_out
    monkeypatch.setattr(file_layout, "_laid_out", lambda state: laid_out({**state, "state": {}}))
    with refuses(CheckpointError, "checkpoint.asynchronous=false"):
        optimizer_image(optimizer.state_dict())
