"""How files hold tokens: every common layout is recognised by its content, none is guessed.

    layout            known by                              tokens
    llm.c             int32[256]: 20240520, 1, count        uint16      also modded-nanogpt; what ShardWriter writes
    llm.c llama-3     int32[256]: 20240801, 7, count        uint32      what ShardWriter writes for large vocabularies
    NeMo Automodel    int32[256]: 278895051, 1, count, size uint16/32
    .npy              b"\\x93NUMPY"                          integers
    Megatron          .idx beside the .bin                  as .idx says
    datatrove         .ds.metadata beside the .ds           as it says
    raw               nothing (nanoGPT, OLMo)               as data.dtype declares: never guessed

All little-endian. What a header or a sidecar counts is checked against the size of the file.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer import text
from trainer.config.folders import command_line
from trainer.errors import DataError

DECLARED_DTYPES = ("uint16", "uint32")
SUFFIXES = (".bin", ".npy", ".ds")

HEADER_BYTES = 1024
LLMC, LLAMA3, AUTOMODEL, LLMC_EVAL = 20240520, 20240801, 278895051, 20240522
VERSIONS = {LLMC: 1, LLAMA3: 7, AUTOMODEL: 1}
_TEXT_MAGIC = {b"PAR1": "parquet", b"\x28\xb5\x2f\xfd": "zstd-compressed", b"\x1f\x8b": "gzip-compressed"}
# source: Megatron-LM's IndexedDataset, the dtype codes that hold token ids
_MEGATRON_DTYPES = {1: "uint8", 4: "int32", 5: "int64", 8: "uint16"}


def how_to_prepare(again: bool = False) -> str:
    """The command that makes shards, as a sentence."""
    command = command_line("prepare", "SOURCE...", "--out", "DIR", "--tokenizer", "NAME")
    return f"{'Prepare it again' if again else 'Make shards'} with `{command}`."


@dataclass(frozen=True)
class Shard:
    """A file of tokens: where they begin, how many there are, and as what they are stored."""

    path: Path
    layout: str
    dtype: str
    offset_bytes: int
    num_tokens: int

    def tokens(self) -> np.ndarray:
        """The tokens as a read-only memory map, [num_tokens]; each call opens the file anew."""
        if self.num_tokens == 0:
            return np.empty(0, dtype=self.dtype)
        mapped = np.memmap(self.path, dtype=self.dtype, mode="r", offset=self.offset_bytes, shape=(self.num_tokens,))
        return mapped.view(np.ndarray)  # slicing a memmap costs microseconds more than slicing an array


def open_shard(path: Path, dtype: str | None = None) -> Shard:
    """Finds out by its content how a file holds tokens.

    dtype   how a file without a header is stored, "uint16" or "uint32"; a header must agree with it
    raises  DataError when the file is missing, empty, truncated, no file of tokens, or has no header and no dtype was
            declared
    """
    path = Path(path)
    if dtype is not None and dtype not in DECLARED_DTYPES:
        raise DataError(f"data.dtype {dtype!r} is not known; {text.did_you_mean(dtype, DECLARED_DTYPES)}")
    try:
        num_bytes = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(HEADER_BYTES)
    except OSError as error:
        raise DataError(f"shard {path} cannot be read: {error.strerror}. {how_to_prepare()}") from None
    if num_bytes == 0:
        raise DataError(f"shard {path} is empty (0 bytes): it was never written to its end. Prepare it again.")
    if head.startswith(b"\x93NUMPY"):
        shard = _open_npy(path, num_bytes)
    elif len(head) == HEADER_BYTES and int.from_bytes(head[:4], "little") in (*VERSIONS, LLMC_EVAL):
        shard = _open_headed(path, np.frombuffer(head, dtype="<i4"), num_bytes)
    else:
        _refuse_text(path, head)
        return _open_raw(path, num_bytes, dtype)
    if dtype is not None and np.dtype(dtype) != np.dtype(shard.dtype):
        raise DataError(
            f"shard {path} says in its header that it holds {shard.dtype}, but data.dtype is {dtype}. "
            "Remove data.dtype: it is only for files without a header."
        )
    return shard


def _open_headed(path: Path, header: np.ndarray, num_bytes: int) -> Shard:
    magic, version, num_tokens, itemsize = (int(number) for number in header[:4])
    if magic == LLMC_EVAL:
        raise DataError(f"shard {path} is an evaluation set of llm.c, not a stream of tokens. Leave it out.")
    if version != VERSIONS[magic]:
        raise DataError(
            f"shard {path} has a header of version {version}, and version {VERSIONS[magic]} is the one known for "
            f"{magic}. Write it again in a known version."
        )
    if magic == AUTOMODEL:
        if itemsize not in (2, 4):
            raise DataError(f"shard {path} says that a token takes {itemsize} bytes, not 2 or 4: it is damaged.")
        dtype = "<u2" if itemsize == 2 else "<u4"
    else:
        dtype = "<u2" if magic == LLMC else "<u4"
    layout = {LLMC: "llm.c", LLAMA3: "llm.c llama-3", AUTOMODEL: "NeMo Automodel"}[magic]
    return _checked(Shard(path, layout, dtype, HEADER_BYTES, num_tokens), num_bytes, "its header")


def _open_npy(path: Path, num_bytes: int) -> Shard:
    with open(path, "rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            form = np.lib.format
            read_header = form.read_array_header_1_0 if version == (1, 0) else form.read_array_header_2_0
            shape, _, dtype = read_header(file)
        except ValueError as error:
            raise DataError(f"shard {path} has a damaged .npy header ({error}). Prepare it again.") from None
        offset = file.tell()
    if len(shape) != 1 or dtype.kind not in "ui":
        raise DataError(f"shard {path} holds {dtype} of shape {shape}; integers in one dimension were expected.")
    return _checked(Shard(path, ".npy", dtype.str, offset, shape[0]), num_bytes, "its header")


def _open_raw(path: Path, num_bytes: int, dtype: str | None) -> Shard:
    try:
        layout, stated, num_tokens = _read_sidecar(path)
    except OSError as error:
        raise DataError(
            f"{error.filename}, which says how shard {path} is stored, cannot be read: {error.strerror}. Fix that."
        ) from None
    stated = stated or dtype
    if stated is None:
        raise DataError(
            f"shard {path} has no header that says how its tokens are stored. Set data.dtype to uint16 (nanoGPT, "
            f"vocabularies up to 65,536) or uint32 (OLMo, larger ones). {how_to_prepare()}"
        )
    if dtype is not None and np.dtype(stated) != np.dtype(dtype):
        raise DataError(
            f"shard {path}: the file beside it says {stated}, but data.dtype is {dtype}. Remove data.dtype."
        )
    itemsize = np.dtype(stated).itemsize
    if num_tokens is not None:
        return _checked(Shard(path, layout, np.dtype(stated).str, 0, num_tokens), num_bytes, "the file beside it")
    if num_bytes % itemsize:
        raise DataError(
            f"shard {path} has {num_bytes:,} bytes, no multiple of the {itemsize} bytes of a {stated}: it is truncated, "
            "or data.dtype is wrong. Copy it again, or set data.dtype."
        )
    return Shard(path, layout, np.dtype(stated).str, 0, num_bytes // itemsize)


def _read_sidecar(path: Path) -> tuple[str, str | None, int | None]:
    """What a file beside a headerless one says: layout, dtype and number of tokens, None where it says nothing."""
    index, metadata = path.with_suffix(".idx"), path.with_name(path.name + ".metadata")
    if path.suffix.lower() == ".bin" and os.path.lexists(index):
        with open(index, "rb") as file:
            head = file.read(18)
        if head.startswith(b"MMIDIDX\0\0") and len(head) == 18 and head[17] in _MEGATRON_DTYPES:
            return "Megatron", _MEGATRON_DTYPES[head[17]], None
    if path.suffix.lower() == ".ds" and os.path.lexists(metadata):
        found = re.match(r"[^\n]*\|([24])\n(\d+)", metadata.read_text(errors="replace"))
        if found:
            return "datatrove", "uint16" if found[1] == "2" else "uint32", int(found[2])
    return "raw", None, None


def _checked(shard: Shard, num_bytes: int, counted_by: str) -> Shard:
    expected = shard.offset_bytes + shard.num_tokens * np.dtype(shard.dtype).itemsize
    if shard.num_tokens < 0 or expected != num_bytes:
        what = "truncated" if num_bytes < expected else "not what was written"
        raise DataError(
            f"shard {shard.path} is {what}: {counted_by} counts {shard.num_tokens:,} tokens, which makes {expected:,} "
            f"bytes, but the file has {num_bytes:,}. Copy or prepare it again."
        )
    return shard


def _refuse_text(path: Path, head: bytes) -> None:
    for magic, kind in _TEXT_MAGIC.items():
        if head.startswith(magic):
            raise DataError(f"shard {path} is {kind} data, not tokens. {how_to_prepare()}")
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"shard {path} is not a file of tokens ({', '.join(SUFFIXES)}). {how_to_prepare()}")
