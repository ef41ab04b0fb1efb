"""What tensors a safetensors file holds, and which of two are not the same to the bit: by headers and bytes, without torch."""

from pathlib import Path
from typing import Any, BinaryIO

from trainer.safetensors_header import read_header

_BLOCK_BYTES = 1 << 20


def differing_tensors(a: Path, b: Path) -> tuple[list[str], int]:
    """Names of the tensors that are in one file only or differ in dtype, shape or any byte; and how many names there are.

    A tensor is read up to its first difference, so that two checkpoints of one training are compared at once.

    raises ValueError when a file is not a safetensors file
    """
    with open(a, "rb", buffering=0) as ours, open(b, "rb", buffering=0) as theirs:
        first, second = read_header(ours), read_header(theirs)
        names, shared = sorted({*first, *second}), first.keys() & second.keys()
        differing = [n for n in names if n not in shared or not _equal(ours, theirs, first[n], second[n])]
    return differing, len(names)


def shapes(path: Path) -> dict[str, list[int]]:
    """The shape of each tensor by its name; raises ValueError when the file is not a safetensors file, OSError."""
    with open(path, "rb", buffering=0) as file:
        return {name: list(facts.get("shape", ())) for name, facts in read_header(file).items()}


def _equal(ours: BinaryIO, theirs: BinaryIO, first: dict[str, Any], second: dict[str, Any]) -> bool:
    if any(first.get(fact) != second.get(fact) for fact in ("dtype", "shape")):
        return False
    (begin, end), (other_begin, other_end) = first["data_offsets"], second["data_offsets"]
    if end - begin != other_end - other_begin:
        return False
    ours.seek(begin)
    theirs.seek(other_begin)
    while begin < end:
        block = ours.read(min(_BLOCK_BYTES, end - begin))
        if not block or block != theirs.read(len(block)):
            return False
        begin += len(block)
    return True
