"""What is known of GPUs by name: how much a GPU could compute, and how much it holds."""

import re

_TERA = 1e12

# Dense peaks in TFLOP/s and memory in GB from NVIDIA's data sheets, without sparsity, fp32 accumulation where the sheet tells it apart.
# The first entry whose words are all in the device's name counts, so the special stands before the general.
_SHEETS: tuple[tuple[str, int | None, dict[str, float]], ...] = (
    ("B200", 180, {"bf16": 2250, "fp16": 2250, "fp8": 4500, "tf32": 1125, "no": 75}),
    ("H200 NVL", 141, {"bf16": 835, "fp16": 835, "fp8": 1671, "tf32": 418, "no": 60}),
    ("GH200 144GB", 144, {"bf16": 989, "fp16": 989, "fp8": 1979, "tf32": 494, "no": 67}),
    ("GH200", 96, {"bf16": 989, "fp16": 989, "fp8": 1979, "tf32": 494, "no": 67}),
    ("H200", 141, {"bf16": 989, "fp16": 989, "fp8": 1979, "tf32": 494, "no": 67}),
    ("H100 NVL", 94, {"bf16": 835, "fp16": 835, "fp8": 1671, "tf32": 418, "no": 60}),
    ("H100 PCIE", 80, {"bf16": 756, "fp16": 756, "fp8": 1513, "tf32": 378, "no": 51}),
    ("H100", 80, {"bf16": 989, "fp16": 989, "fp8": 1979, "tf32": 494, "no": 67}),
    ("A100 80GB", 80, {"bf16": 312, "fp16": 312, "tf32": 156, "no": 19.5}),
    ("A100 40GB", 40, {"bf16": 312, "fp16": 312, "tf32": 156, "no": 19.5}),
    ("A100", None, {"bf16": 312, "fp16": 312, "tf32": 156, "no": 19.5}),
    ("L40S", 48, {"bf16": 362, "fp16": 362, "fp8": 733, "tf32": 183, "no": 91.6}),
    ("L40", 48, {"bf16": 181, "fp16": 181, "fp8": 362, "tf32": 90.5, "no": 90.5}),
    ("L4", 24, {"bf16": 121, "fp16": 121, "fp8": 242, "tf32": 60, "no": 30.3}),
    ("A40", 48, {"bf16": 149.7, "fp16": 149.7, "tf32": 74.8, "no": 37.4}),
    ("A30", 24, {"bf16": 165, "fp16": 165, "tf32": 82, "no": 10.3}),
    ("A10", 24, {"bf16": 125, "fp16": 125, "tf32": 62.5, "no": 31.2}),
    ("RTX A6000", 48, {"bf16": 154.8, "fp16": 154.8, "tf32": 77.4, "no": 38.7}),
    ("RTX 4090", 24, {"bf16": 165.2, "fp16": 165.2, "fp8": 330.3, "tf32": 82.6, "no": 82.6}),
    ("RTX 3090", 24, {"bf16": 71, "fp16": 71, "tf32": 35.6, "no": 35.6}),
    ("V100 32GB", 32, {"fp16": 125, "no": 15.7}),
    ("V100 PCIE", 16, {"fp16": 112, "no": 14}),
    ("V100", 16, {"fp16": 125, "no": 15.7}),
    ("T4", 16, {"fp16": 65, "no": 8.1}),
)
_BY_WORDS = tuple((frozenset(words.split()), memory, peaks) for words, memory, peaks in _SHEETS)
_OTHER_CHIPS = {"LAPTOP", "MIG", "D", "TI", "SUPER", "MAXQ"}

KNOWN_GPUS = tuple(words for words, _, _ in _SHEETS)
"""Every name of the table."""


def peak_flops(device_name: str, precision: str) -> float | None:
    """Dense peak of a GPU in FLOP/s, or None when the GPU is not in the table or cannot do this precision.

    device_name  as torch.cuda.get_device_name says it
    precision    `bf16`, `fp16`, `fp8`, `tf32` or `no`; `no` means true fp32 outside the tensor cores, which is what
                 torch computes unless tf32 is allowed
    source       NVIDIA data sheets of each product, columns without sparsity
    """
    _, peaks = _sheet(device_name)
    return peaks[precision] * _TERA if precision in peaks else None


def memory_bytes(device_name: str) -> float | None:
    """What a GPU holds by its data sheet, whose GB are decimal: a little less than it has; None where that is not known."""
    memory, _ = _sheet(device_name)
    return None if memory is None else memory * 1e9


def _sheet(device_name: str) -> tuple[int | None, dict[str, float]]:
    words = set(re.split(r"[^A-Z0-9]+", device_name.upper()))
    if not words & _OTHER_CHIPS:
        for needed, memory, peaks in _BY_WORDS:
            if needed <= words:
                return memory, peaks
    return None, {}
