"""Small files in the layout of every peer, built here from one list of tokens."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from trainer.data.shards import ShardWriter, TokenDataset

VOCAB_SIZE = 50257


def header(*numbers: int) -> bytes:
    words = np.zeros(256, dtype="<i4")
    words[: len(numbers)] = numbers
    return words.tobytes()


def write_llmc(path: Path, tokens: np.ndarray) -> str | None:
    path.with_suffix(".bin").write_bytes(header(20240520, 1, len(tokens)) + tokens.astype("<u2").tobytes())


def write_llama3(path: Path, tokens: np.ndarray) -> str | None:
    path.with_suffix(".bin").write_bytes(header(20240801, 7, len(tokens)) + tokens.astype("<u4").tobytes())


def write_automodel_2(path: Path, tokens: np.ndarray) -> str | None:
    path.with_suffix(".bin").write_bytes(header(278895051, 1, len(tokens), 2) + tokens.astype("<u2").tobytes())


def write_automodel_4(path: Path, tokens: np.ndarray) -> str | None:
    path.with_suffix(".bin").write_bytes(header(278895051, 1, len(tokens), 4) + tokens.astype("<u4").tobytes())


def write_npy(path: Path, tokens: np.ndarray) -> str | None:
    np.save(path.with_suffix(".npy"), tokens.astype(np.uint16))


def write_npy_big_endian(path: Path, tokens: np.ndarray) -> str | None:
    np.save(path.with_suffix(".npy"), tokens.astype(">i4"))


def write_nanogpt(path: Path, tokens: np.ndarray) -> str | None:
    path.with_suffix(".bin").write_bytes(tokens.astype("<u2").tobytes())
    return "uint16"


def write_olmo(path: Path, tokens: np.ndarray) -> str | None:
    path.with_suffix(".npy").write_bytes(tokens.astype("<u4").tobytes())
    return "uint32"


def write_datatrove(path: Path, tokens: np.ndarray) -> str | None:
    path.with_suffix(".ds").write_bytes(tokens.astype("<u2").tobytes())
    path.with_suffix(".ds.metadata").write_text(f"gpt2|2\n{len(tokens)}\n1 KT")


def write_datatrove_bare(path: Path, tokens: np.ndarray) -> str | None:
    path.with_suffix(".ds").write_bytes(tokens.astype("<u4").tobytes())
    return "uint32"


def write_megatron(path: Path, tokens: np.ndarray) -> str | None:
    path.with_suffix(".bin").write_bytes(tokens.astype("<i4").tobytes())
    path.with_suffix(".idx").write_bytes(b"MMIDIDX\0\0" + (1).to_bytes(8, "little") + b"\x04" + bytes(40))


LAYOUTS = {
    "llm.c": write_llmc,
    "llm.c llama-3": write_llama3,
    "NeMo Automodel u16": write_automodel_2,
    "NeMo Automodel u32": write_automodel_4,
    ".npy": write_npy,
    ".npy big-endian": write_npy_big_endian,
    "nanoGPT": write_nanogpt,
    "OLMo": write_olmo,
    "datatrove": write_datatrove,
    "datatrove without metadata": write_datatrove_bare,
    "Megatron": write_megatron,
}


@pytest.fixture(params=LAYOUTS)
def layout(request) -> Callable[[Path, np.ndarray], tuple[Path, str | None]]:
    """Writes tokens in one peer's layout; returns the file and the dtype that must be declared for it."""

    def write(path: Path, tokens: np.ndarray) -> tuple[Path, str | None]:
        dtype = LAYOUTS[request.param](path, tokens)
        (found,) = (p for p in path.parent.glob(f"{path.name}.*") if p.suffix in (".bin", ".npy", ".ds"))
        return found, dtype

    return write


@pytest.fixture
def tokens() -> np.ndarray:
    """4,001 token ids of GPT-2's vocabulary."""
    return np.random.default_rng(0).integers(0, VOCAB_SIZE, 4001)


@pytest.fixture
def make_dataset(tmp_path) -> Callable[..., TokenDataset]:
    """A dataset of shards with the given numbers of tokens, each token a running number."""

    def make(*sizes: int, sequence_length: int = 8) -> TokenDataset:
        first, paths = 0, []
        for i, size in enumerate(sizes):
            paths.append(tmp_path / f"part_{i:06d}.bin")
            with ShardWriter(paths[-1], VOCAB_SIZE) as shard:
                shard.write(np.arange(first, first + size))
            first += size
        return TokenDataset(paths, sequence_length, VOCAB_SIZE)

    return make
