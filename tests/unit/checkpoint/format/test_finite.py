"""Every pattern of bits of the small types, and every place of the large ones: what is not finite is found, and nothing else."""

import numpy as np
import pytest
import torch

from trainer.checkpoint.format.file_layout import TYPES as TORCH_TYPES
from trainer.checkpoint.format.finite import FiniteLook, Floats, NotFinite

SMALL = (torch.float16, torch.bfloat16, torch.float8_e5m2, torch.float8_e4m3fn)


def found(content: bytes, tensors, block=1 << 23):
    look = FiniteLook(memoryview(content), tensors)
    try:
        for start in range(0, len(content), block):
            look.block(start, min(start + block, len(content)))
    except NotFinite as error:
        return error.tensor
    return None


@pytest.mark.parametrize("dtype", SMALL, ids=str)
def test_each_pattern_of_bits_of_a_small_type_is_judged_as_torch_judges_it(dtype):
    size, name = dtype.itemsize, TORCH_TYPES[dtype]
    patterns = np.arange(256**size, dtype=f"<u{size}")
    theirs = torch.from_numpy(patterns.copy()).view(dtype).float().isfinite().tolist()
    ours = [found(pattern.tobytes(), [Floats("a", 0, size, name)]) is None for pattern in patterns]
    assert ours == theirs


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf, 3.4e38, -3.4e38, -0.0, 1e-45])
@pytest.mark.parametrize("type_", ["F32", "F64"])
def test_a_number_of_a_large_type_is_judged_wherever_it_stands(type_, value):
    numbers = np.ones(1000, dtype={"F32": "<f4", "F64": "<f8"}[type_])
    for place in (0, 7, 511, 999):
        numbers[:] = -1.0
        numbers[place] = value
        tensors = [Floats("a", 3, numbers.nbytes, type_)]  # at an odd address, in blocks that cut numbers in two
        assert found(b"abc" + numbers.tobytes() + b"\xff" * 9, tensors, block=64) == (
            None if np.isfinite(value) else "a"
        )


def test_what_lies_between_the_tensors_is_not_looked_at_and_the_first_bad_one_is_named():
    good, bad, hole = np.ones(5, "<f4").tobytes(), np.array([1, np.nan], "<f4").tobytes(), b"\xff" * 20
    content = hole + good + hole + bad + bad
    tensors = [
        Floats("good", 20, 20, "F32"),
        Floats("worse", 68, 8, "F32"),
        Floats("bad", 60, 8, "F32"),
        Floats("empty", 60, 0, "F32"),
    ]
    assert [found(content, tensors, block) for block in (1, 7, 16, 64, 1000)] == ["bad"] * 5
    assert found(content, [tensors[0], tensors[3]]) is None
