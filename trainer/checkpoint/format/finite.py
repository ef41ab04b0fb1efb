"""Floating-point numbers that are infinite or no number (NaN), found in raw memory at its speed, without torch.

Such a number has an exponent of ones only. So it is, read as a signed integer, at least the pattern of plus infinity, or, read as an
unsigned one, at least that of minus infinity: two integer maxima decide, for bfloat16 and float8 too, which numpy has no types for.
"""

from collections.abc import Iterable
from dataclasses import dataclass

_NUM_BYTES_AND_INFINITY = {
    "F64": (8, 0x7FF0_0000_0000_0000),
    "F32": (4, 0x7F80_0000),
    "F16": (2, 0x7C00),
    "BF16": (2, 0x7F80),
    "F8_E5M2": (1, 0x7C),
    "F8_E4M3": (1, 0x7F),
}
"""By safetensors' name of a type: its size, and its smallest positive pattern that is not finite (of F8_E4M3: NaN, it has no infinity)."""

TYPES = frozenset(_NUM_BYTES_AND_INFINITY)

_CHUNK_BYTES = 1 << 20
"""What is looked at in one go: both maxima find it in the processor's cache."""


class NotFinite(Exception):
    """A tensor that is to be saved holds numbers that are not finite."""

    def __init__(self, tensor: str) -> None:
        super().__init__(f"{tensor} is not finite")
        self.tensor = tensor


@dataclass(frozen=True)
class Floats:
    """One tensor's numbers in a file: its name for people, where its bytes begin, how many they are, and one of TYPES."""

    name: str
    start: int
    num_bytes: int
    type: str


class FiniteLook:
    """Looks at a file's numbers block by block, while each block is in the cache anyway."""

    def __init__(self, pages: memoryview, tensors: Iterable[Floats]) -> None:
        """`pages`: the whole file."""
        self._pages = pages
        self._tensors = sorted(tensors, key=lambda floats: floats.start)
        self._first = 0

    def block(self, start: int, end: int) -> None:
        """Looks at the numbers that begin in this block of bytes; blocks come in order. raises NotFinite"""
        while self._first < len(self._tensors) and self._tensors[self._first].start < end:
            tensor = self._tensors[self._first]
            self._look(tensor, start, end)
            if tensor.start + tensor.num_bytes > end:
                return
            self._first += 1

    def _look(self, tensor: Floats, start: int, end: int) -> None:
        import numpy as np  # at the first save: the writer starts in half the time without it

        size, infinity = _NUM_BYTES_AND_INFINITY[tensor.type]
        # A number that straddles the border counts to the block that it begins in.
        first = max(0, -(-(start - tensor.start) // size))
        last = min(tensor.num_bytes // size, -(-(end - tensor.start) // size))
        for chunk in range(first, last, _CHUNK_BYTES // size):
            count = min(_CHUNK_BYTES // size, last - chunk)
            signed = np.frombuffer(self._pages, f"<i{size}", count, tensor.start + chunk * size)
            if signed.max() >= infinity or signed.view(f"<u{size}").max() >= infinity + (1 << (8 * size - 1)):
                raise NotFinite(tensor.name)
