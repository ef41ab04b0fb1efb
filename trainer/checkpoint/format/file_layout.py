"""The files of a checkpoint as images in memory: a snapshot is one copy of each tensor to the place its bytes have in the file.

    model.safetensors   8 bytes, a JSON header, the tensors one after the other          safetensors' format
    optimizer.bin       a zip of data.pkl and one record a tensor, as torch.save writes   torch's format

Serialising, which costs more than the copy, is thereby done once: what is left to do later is to write bytes that are there.
`Accelerator.load_state` reads these files like its own.
"""

import json
import os
import struct
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from trainer.checkpoint.format import finite
from trainer.checkpoint.format.finite import Floats
from trainer.checkpoint.format.tensor_names import moment_name
from trainer.errors import CheckpointError

PAGE_BYTES = 4096
"""What a disk is written in past the page cache: every file's image begins at a multiple of it."""

# safetensors stores the tensors by type in this order, from the last to the first, and those of one type by name.
TYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}


@dataclass(frozen=True)
class Checksum:
    """A record of a zip, and where its CRC-32 stands: known only when the bytes are. All in bytes from the file's start."""

    start: int
    num_bytes: int
    places: tuple[int, ...]


@dataclass(frozen=True)
class FileImage:
    """One file: its size, the bytes that are no tensor's, and where each tensor's bytes begin."""

    name: str
    num_bytes: int
    fixed: list[tuple[int, bytes]]
    tensors: list[tuple[int, Tensor]]
    checksums: list[Checksum]
    floats: list[Floats] = field(default_factory=list)
    """The tensors of floating-point numbers among them, by name."""

    @property
    def padded_bytes(self) -> int:
        """Its size in whole pages."""
        return -(-self.num_bytes // PAGE_BYTES) * PAGE_BYTES


def model_image(state: Mapping[str, Tensor]) -> FileImage:
    """The `model.safetensors` of a state dict that holds no tensor twice; byte for byte what safetensors writes.

    source  the format's description, github.com/huggingface/safetensors
    """
    ranks = {dtype: rank for rank, dtype in enumerate(TYPES)}
    ordered = sorted(state.items(), key=lambda item: (-ranks[item[1].dtype], item[0]))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, tensor in ordered:
        end = position + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    begin = 8 + len(text)
    tensors = [(begin + header[name]["data_offsets"][0], tensor) for name, tensor in ordered]
    floats = [_floats(name, tensor, start) for (name, tensor), (start, _) in zip(ordered, tensors, strict=True)]
    fixed = [(0, struct.pack("<Q", len(text)) + text)]
    return FileImage("model.safetensors", begin + position, fixed, tensors, [], [each for each in floats if each])


def optimizer_image(state: Mapping[str, Any], owners: Mapping[int, str] = MappingProxyType({})) -> FileImage:
    """The `optimizer.bin` of an optimizer's state dict: what torch.save writes of it, with room for the tensors' bytes.

    torch itself lays the file out in memory, without them; its records are then matched with the storages in the order they were met in.

    owners  the parameter that each number of the state stands for; the number itself where it is not said
    """
    content = _laid_out(state)
    with zipfile.ZipFile(content) as archive:
        records = archive.infolist()
        entries = _central_entries(content, archive.start_dir, records)
    bytes_of = {f"optimizer/data/{number}": storage for number, storage in enumerate(_storages(state))}
    num_bytes = os.fstat(content.fileno()).st_size
    tensors, checksums, gaps = [], [], []
    begins: dict[int, int] = {}
    for record, entry in zip(records, entries, strict=True):
        storage = bytes_of.pop(record.filename, None)
        if storage is None:
            continue
        if record.file_size != storage.nbytes():
            raise unknown_form(f"{record.filename} has {record.file_size} bytes, and its tensors {storage.nbytes()}")
        begin = _data_of(content, record)
        view = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
        tensors.append((begin, view))
        begins[storage._cdata] = begin
        # Behind the data: the signature PK\7\8, then the checksum; in the directory it is the 17th byte of the entry.
        checksums.append(Checksum(begin, record.file_size, (begin + record.file_size + 4, entry + 16)))
        gaps.append((begin, begin + record.file_size))
    if bytes_of:
        raise unknown_form(f"it has no record for {', '.join(sorted(bytes_of))}")
    fixed = [(start, _read(content, start, end - start)) for start, end in _between(gaps, num_bytes)]
    content.close()
    return FileImage("optimizer.bin", num_bytes, fixed, tensors, checksums, _moment_floats(state, owners, begins))


def _moment_floats(state: Mapping[str, Any], owners: Mapping[int, str], begins: Mapping[int, int]) -> list[Floats]:
    """The optimizer's moments; `begins`: where each storage begins in the file."""
    found = []
    for number, values in state["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                start = begins[value.untyped_storage()._cdata] + value.storage_offset() * value.element_size()
                found.append(_floats(moment_name(owners.get(number, str(number)), key), value, start))
    return [floats for floats in found if floats]


def _floats(name: str, tensor: Tensor, start: int) -> Floats | None:
    """A tensor's numbers in a file; None for one that has no floating-point numbers."""
    kind = TYPES.get(tensor.dtype)
    return Floats(name, start, tensor.numel() * tensor.element_size(), kind) if kind in finite.TYPES else None


def unknown_form(what: str) -> CheckpointError:
    """Where torch.save writes a file in another way than the one that is known here."""
    return CheckpointError(
        f"torch {torch.__version__} writes an optimizer's file in a way that saves in the background do not know ({what}); set "
        "checkpoint.asynchronous=false, or install a torch that setup.cfg names"
    )


def _laid_out(state: Mapping[str, Any]):
    """An open file, in memory and with holes, that torch.save wrote without the tensors' bytes."""
    descriptor = os.memfd_create("optimizer")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimizer.bin"  # torch puts the name into every record
        path.symlink_to(f"/proc/self/fd/{descriptor}")
        with torch.serialization.skip_data():
            torch.save(state, path)
    return os.fdopen(descriptor, "rb")


def _storages(value: Any, seen: set[int] | None = None) -> Iterator[torch.UntypedStorage]:
    """Every storage below a value of dicts, lists and tuples, once, in the order in which pickle meets it."""
    seen = set() if seen is None else seen
    if isinstance(value, Tensor):
        storage = value.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            yield storage
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _storages(inner, seen)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _storages(inner, seen)


def _read(file, start: int, num_bytes: int) -> bytes:
    return os.pread(file.fileno(), num_bytes, start)


def _data_of(file, record: zipfile.ZipInfo) -> int:
    """Where a record's data begins: behind its header of 30 bytes, its name and its padding."""
    name_bytes, extra_bytes = struct.unpack("<HH", _read(file, record.header_offset + 26, 4))
    return record.header_offset + 30 + name_bytes + extra_bytes


def _central_entries(file, start: int, records: list[zipfile.ZipInfo]) -> list[int]:
    """Where each record's entry in the zip's central directory begins."""
    places = []
    for _ in records:
        places.append(start)
        signature, *_, name, extra, comment = struct.unpack("<4s6H3I3H", _read(file, start, 34))
        if signature != b"PK\1\2":
            raise unknown_form("its directory is not that of a zip file")
        start += 46 + name + extra + comment
    return places


def _between(gaps: list[tuple[int, int]], num_bytes: int) -> Iterator[tuple[int, int]]:
    """What lies around the gaps, in order."""
    position = 0
    for start, end in sorted(gaps):
        yield position, start
        position = end
    yield position, num_bytes
