"""Is the chunked loss as fast as the plain one, how much memory does it save, and is the compiled function faster than its passes?

    python tests/benchmarks/head.py [rounds] [precision]

Forward and backward of head and loss, all ways in turn in one process, medians and the medians of the paired ratios to the
plain way: `chunked` by passes of single operations, `fused` with the function that a GPU runs as one kernel, compiled.
Peak memory is that of a fresh process for each way, above what operands and libraries take. Ends with 1 when at a
vocabulary of 50,304 the chunked way takes more than 1.1 times the plain one, or more than half of its memory.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from trainer.model.head import chunked_cross_entropy

SHAPES = ((2048, 192, 4096), (1024, 768, 50304))
"""Tokens, width, vocabulary."""
MAX_TIME_RATIO, MAX_MEMORY_RATIO = 1.1, 0.5


def ways(num_tokens: int, width: int, vocabulary: int, precision: str) -> dict[str, Callable[[], None]]:
    """The ways to take one step of head and loss over the same operands."""
    torch.manual_seed(0)
    hidden = torch.randn(num_tokens, width, requires_grad=True)
    weight = (torch.randn(vocabulary, width) * 0.02).requires_grad_()
    labels = torch.randint(vocabulary - 40, (num_tokens,))

    def autocast() -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")

    def plain() -> None:
        hidden.grad = weight.grad = None
        with autocast():
            loss = F.cross_entropy(F.linear(hidden, weight).float(), labels)
        loss.backward()

    def chunked(fused: bool = False) -> None:
        hidden.grad = weight.grad = None
        with autocast():
            total, count = chunked_cross_entropy(hidden, weight, labels, vocab_size=vocabulary - 40, fused=fused)
        (total / count).backward()

    return {"plain": plain, "chunked": chunked, "fused": lambda: chunked(fused=True)}


def seconds(way: Callable[[], None]) -> float:
    start = time.perf_counter()
    way()
    return time.perf_counter() - start


def compare(shape: tuple[int, int, int], precision: str, rounds: int) -> float:
    """Prints a line for each way; returns the median of the chunked way's paired time ratios."""
    every = ways(*shape, precision)
    for way in every.values():
        way()
    rows = [{name: seconds(way) for name, way in every.items()} for _ in range(rounds)]
    print(f"N={shape[0]} D={shape[1]} V={shape[2]} {precision}")
    medians = {}
    for name in every:
        ratios = sorted(row[name] / row["plain"] for row in rows)
        medians[name] = statistics.median(ratios)
        milliseconds = 1e3 * statistics.median(row[name] for row in rows)
        print(
            f"  {name:8s} {milliseconds:8.1f} ms  ratio {medians[name]:.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})",
            flush=True,
        )
    return medians["chunked"]


def peak_megabytes(shape: tuple[int, int, int], precision: str, name: str) -> float:
    """Peak of one way in a process of its own."""
    arguments = [sys.executable, __file__, "--memory", name, precision, *map(str, shape)]
    return float(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)


def print_own_peak(name: str, precision: str, *shape: str) -> None:
    """Prints the megabytes that one step takes at its highest, above what stood before it."""
    # A small run of the same way first, so that libraries and thread pools are not counted.
    ways(64, 64, 128, precision)[name]()
    way = ways(*map(int, shape), precision)[name]
    before = status_bytes("VmRSS")
    way()
    print((status_bytes("VmHWM") - before) / 1e6)


def status_bytes(field: str) -> int:
    """A field of this process's memory status. Not getrusage, whose peak a child takes over from its parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def main(rounds: int, *precisions: str) -> int:
    held = True
    for precision in precisions or ("fp32", "bf16"):
        for shape in SHAPES:
            ratio = compare(shape, precision, rounds)
            peaks = {name: peak_megabytes(shape, precision, name) for name in ("plain", "chunked")}
            share = peaks["chunked"] / peaks["plain"]
            print(f"  peak memory: plain {peaks['plain']:.0f} MB, chunked {peaks['chunked']:.0f} MB, ratio {share:.2f}")
            if shape[2] == 50304 and precision == "fp32":
                held = held and ratio <= MAX_TIME_RATIO and share <= MAX_MEMORY_RATIO
    print("held" if held else "NOT held: at V=50304 in fp32, time ratio at most 1.1 and memory ratio at most 0.5")
    return 0 if held else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory"]:
        print_own_peak(*sys.argv[2:])
    else:
        sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 7, *sys.argv[2:]))
