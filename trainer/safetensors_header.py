"""What a safetensors file says of its tensors, read without torch and without the tensors.

A file is the length of its header (8 bytes), the header (JSON: name -> dtype, shape, data_offsets), and the data.
"""

import json
from pathlib import Path
from typing import Any, BinaryIO

MAX_HEADER_BYTES = 100_000_000
"""What safetensors itself accepts."""


def read_header(file: BinaryIO) -> dict[str, dict[str, Any]]:
    """Each tensor's facts, its data_offsets counted from the file's begin. raises ValueError for a file of another kind"""
    length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"{file.name} is not a safetensors file: its header would have {length:,} bytes")
    text = file.read(length)
    if len(text) < length:
        raise ValueError(f"{file.name} is not a safetensors file: it ends within its header")
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        return {
            name: {**facts, "data_offsets": [int(offset) + 8 + length for offset in facts["data_offsets"]]}
            for name, facts in header.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        raise ValueError(f"{file.name} is not a safetensors file: its header cannot be read") from None


def header_of(path: Path) -> dict[str, dict[str, Any]]:
    """The same of a whole file. raises ValueError also for one that ends before its data do, or whose tensors have no type or shape"""
    with open(path, "rb", buffering=0) as file:
        header = read_header(file)
    for name, facts in header.items():
        is_whole = isinstance(facts.get("dtype"), str) and isinstance(facts.get("shape"), list)
        if not is_whole or len(facts["data_offsets"]) != 2:
            raise ValueError(f"{path} is not a safetensors file: its header gives {name} no dtype, shape or place")
    needed = max((facts["data_offsets"][1] for facts in header.values()), default=0)
    there = path.stat().st_size
    if there < needed:
        raise ValueError(f"{path} is cut short: it has {there:,} bytes of {needed:,}")
    return header
