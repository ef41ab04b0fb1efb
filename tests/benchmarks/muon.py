"""What does Muon's iteration cost in fp32 and in bf16, and what does it make of a whole step?

    python tests/benchmarks/muon.py [rounds] [--json FILE]

First whole steps of the default recipe, updated in turn by torch.optim.Muon (what this trainer used before) and by this trainer's Muon. Then
the iteration alone over the hidden matrices of the default recipe and of three layers of `llama-124m`: in fp32 each matrix by itself and in
stacks of several sizes, in turn, and in bf16 as torch.optim.Muon has it (one matrix of each shape, multiplied up).

Ends with 1 when the optimizer takes more than 35 % of a step (median) where the processor has no bf16 arithmetic, or, where it has,
the step takes more than 1.05 times that with torch.optim.Muon (median of paired ratios).
"""

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.benchmarks.workload import WARM_UP_STEPS, Workload, machine
from trainer.model.build import build_shapes
from trainer.optim import muon_with_adamw as muon
from trainer.optim.groups import named_groups

MAX_OPTIMIZER_SHARE, MAX_STEP_RATIO = 0.35, 1.05
SETTINGS = {"coefficients": (3.4445, -4.7750, 2.0315), "num_steps": 5, "eps": 1e-7}
STACKS = {"one by one": 1, "stacks of 1 MB": 2**20, "stacks of 4 MB": 2**22, "all of a shape": 2**62}
"""Bytes of a stack, by what it is called."""


def hidden_shapes(preset: str, num_layers: int) -> list[torch.Size]:
    """Shapes of the matrices that Muon updates in so many layers."""
    model = build_shapes(preset, {"num_hidden_layers": num_layers}, sequence_length=128)
    return [parameter.shape for parameter in named_groups(model)["hidden"].values()]


def in_fp32(matrices: list[torch.Tensor], stack_bytes: int) -> float:
    """Seconds of the iteration over all of them, with the stacking."""
    muon.STACK_BYTES = stack_bytes
    started = time.perf_counter()
    for stack in muon.stacks(matrices):
        muon.orthogonalize(torch.stack(stack), **SETTINGS)
    return time.perf_counter() - started


def published(matrices: list[torch.Tensor]) -> float:
    """Seconds of torch's own iteration in bf16, over one matrix of each shape, times how many there are."""
    seconds = 0.0
    for shape, number in Counter(matrix.shape for matrix in matrices).items():
        one = torch.optim._muon._zeropower_via_newtonschulz
        matrix = next(matrix for matrix in matrices if matrix.shape == shape)
        started = time.perf_counter()
        one(matrix, SETTINGS["coefficients"], SETTINGS["num_steps"], SETTINGS["eps"])
        seconds += number * (time.perf_counter() - started)
    return seconds


def iteration(preset: str, num_layers: int, rounds: int) -> dict[str, Any]:
    """Medians by way, and GFLOP/s."""
    shapes = hidden_shapes(preset, num_layers)
    matrices = [torch.randn(shape) for shape in shapes]
    flop = sum(SETTINGS["num_steps"] * (4 * min(shape) ** 2 * max(shape) + 2 * min(shape) ** 3) for shape in shapes)
    ways: dict[str, Callable[[], float]] = {
        f"fp32, {name}": lambda most=most: in_fp32(matrices, most) for name, most in STACKS.items()
    }
    kept = muon.STACK_BYTES
    rows: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            seconds = way()
            if number:
                rows[name].append(seconds)
    muon.STACK_BYTES = kept
    rows["bf16, as torch.optim.Muon"] = [published(matrices)]
    medians = {name: statistics.median(seconds) for name, seconds in rows.items()}
    print(f"\n{preset}, {num_layers} layers: {len(shapes)} matrices, {flop / 1e9:.1f} GFLOP")
    for name, seconds in rows.items():
        print(
            f"  {name:28s} {medians[name] * 1e3:9.1f} ms ({min(seconds) * 1e3:.1f} to {max(seconds) * 1e3:.1f}), {flop / medians[name] / 1e9:6.1f} GFLOP/s"
        )
    return {
        "preset": preset,
        "layers": num_layers,
        "matrices": len(shapes),
        "flop": flop,
        "seconds": medians,
        "stack_bytes": kept,
    }


def whole_steps(rounds: int) -> dict[str, Any]:
    """Steps of the default recipe, updated in turn by torch's Muon and by ours; each has weights and moments of its own."""
    sides = {name: Workload("shakespeare") for name in ("before", "after")}
    optimizers = {name: side.optimizer() for name, side in sides.items()}
    hidden = [group for group in optimizers["before"].param_groups if group["algorithm"] == "muon"]
    optimizers["before"]._algorithms["muon"] = torch.optim.Muon(hidden)
    rows: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for number in range(rounds + WARM_UP_STEPS):
        for name, side in sides.items():
            times = side.gradients(), side.update(optimizers[name])
            if number >= WARM_UP_STEPS:
                rows[name].append(times)
    result: dict[str, Any] = {"rounds": rounds}
    print("\nwhole steps of shakespeare, in turn")
    for name, times in rows.items():
        step, update = (
            statistics.median(values) for values in ([sum(pair) for pair in times], [pair[1] for pair in times])
        )
        share = statistics.median(pair[1] / sum(pair) for pair in times)
        result[name] = {"step_seconds": step, "optimizer_seconds": update, "optimizer_share": share}
        print(f"  {name:7s} step {step * 1e3:8.1f} ms, optimizer {update * 1e3:8.1f} ms ({share:.0%} of the step)")
    result["step_ratio"] = statistics.median(
        sum(after) / sum(before) for after, before in zip(rows["after"], rows["before"], strict=True)
    )
    print(f"  after / before: {result['step_ratio']:.3f} (median of {rounds} pairs)")
    return result


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("rounds", type=int, nargs="?", default=11)
    parser.add_argument("--json", type=Path)
    typed = parser.parse_args()
    result = {"machine": machine(), "steps": whole_steps(typed.rounds)}
    result["iteration"] = [
        iteration("llama-shakespeare", 4, typed.rounds),
        iteration("llama-124m", 3, max(3, typed.rounds // 3)),
    ]
    if typed.json:
        typed.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    steps = result["steps"]
    if result["machine"]["bf16_arithmetic"]:
        held = steps["step_ratio"] <= MAX_STEP_RATIO
    else:
        held = steps["after"]["optimizer_share"] <= MAX_OPTIMIZER_SHARE
    print("held" if held else "NOT held")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
