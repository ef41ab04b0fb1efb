"""Is `trainer plan` right? What it says before a run beside what the run then takes, on this machine's CPUs.

    python tests/benchmarks/plan.py [--steps 50] [--json FILE]

Three recipes that need memory for different things are planned and then launched, one after another: peak memory of the process against
`needed_bytes`, the mean step against the one from FLOPs alone, and against the one by the pace of another of the three. The machine's
speed is measured again and again during each run, and the plan is judged at that speed. A machine whose
speed varies by more than half over a run judges no time. Ends with 1 when memory is off by more than a tenth, a step by more than 30 %,
or by more than 15 % by the pace of another.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))
from tests.benchmarks.workload import machine  # noqa: E402
from trainer.metrics.curves import CURVE, read_records  # noqa: E402
from trainer.tools.plan.pace import cpu_peak  # noqa: E402

MEMORY, FLOPS_ALONE, CALIBRATED = 0.10, 0.30, 0.15
EVERY_SECONDS, STEADY = 3.0, 1.5

_PLAYS = ["data.corpus=shakespeare", "evaluation.num_sequences=16", "evaluation.tasks=[]"]
RECIPES = {
    "long batches": ["shakespeare", "global_batch=32", "micro_batch=16", "sequence_length=256"],
    "wide head": [
        *("gpt2-124m", *_PLAYS, "data.tokenizer=gpt2", "model.config.n_layer=4"),
        *("global_batch=2", "micro_batch=2", "sequence_length=256"),
    ],
    "checkpointed": [
        *("llama-124m", *_PLAYS, "model.gradient_checkpointing=true", "global_batch=8", "micro_batch=8"),
        *("model.config.num_hidden_layers=6", "model.config.hidden_size=512", "model.config.intermediate_size=1408"),
        *("model.config.num_attention_heads=8", "model.config.num_key_value_heads=4", "sequence_length=128"),
    ],
}
"""Activations count in the first, weights, moments and the head's logits in the second; blocks are computed again in the third."""


def trainer(*words: str) -> str:
    """What a command answers; its log goes to standard error."""
    command = [sys.executable, "-m", "trainer", *words]
    return subprocess.run(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True, check=True).stdout


def words_of(name: str, folder: Path, steps: int) -> list[str]:
    """The launch of a recipe, into a folder of its own."""
    recipe, *overrides = RECIPES[name]
    place = [f"runs_folder={folder}/runs", f"checkpoints_folder={folder}/checkpoints", f"name={name.replace(' ', '-')}"]
    few = [
        "evaluation.sample_tokens=0",
        "schedule.warmup_steps=0",
        f"max_steps={steps}",
        f"evaluation.every_steps={steps}",
    ]
    return ["cpu", recipe, *overrides, *place, *few]


def planned(words: list[str], *options: str) -> dict[str, Any]:
    facts = json.loads(trainer("plan", *words, "--json", *options))["devices"][0]
    return {
        "needed_bytes": facts["needed_bytes"],
        "step_seconds": facts["step_seconds"],
        "peak_flops": facts["device"]["peak_flops"],
        "memory": facts["memory"],
    }


class Speed(threading.Thread):
    """The machine's speed over a launch: now and then its trainer is stopped for as long as a product is timed.

    A machine that is shared with others has another speed from minute to minute, and a launch is to be judged by that which it had.
    """

    def __init__(self, launch: int) -> None:
        super().__init__(daemon=True)
        self._launch, self._ended = launch, threading.Event()
        self.samples: list[tuple[float, float]] = []
        """(seconds for which the trainer was stopped, FLOP/s)"""

    def run(self) -> None:
        while not self._ended.wait(EVERY_SECONDS):
            processes = [p for p in psutil.Process(self._launch).children(recursive=True) if "train" in p.cmdline()]
            started = time.perf_counter()
            for process in processes:
                process.suspend()
            cpu_peak.cache_clear()
            speed = cpu_peak()
            for process in processes:
                process.resume()
            self.samples.append((time.perf_counter() - started, speed))

    def end(self) -> None:
        self._ended.set()
        self.join()


def taken(words: list[str], run: Path) -> dict[str, float]:
    """What the run took: the peak of its memory, a step without what it was stopped for, and the machine's speed meanwhile."""
    launch = subprocess.Popen(
        [sys.executable, "-m", "trainer", "launch", *words], cwd=PROJECT, stdout=subprocess.DEVNULL
    )
    try:
        while not (run / CURVE).is_file() or not read_records(run / CURVE):
            time.sleep(0.2)
            assert launch.poll() is None, "the launch has ended before its first step"
        speed = Speed(launch.pid)
        speed.start()
        assert launch.wait() == 0, "the launch has failed"
    finally:
        launch.kill()
    speed.end()
    records = read_records(run / CURVE)
    seconds = [r["step_seconds"] for r in records if "step_seconds" in r and r["step"] > 1]
    # What comes after the last step is sampled too, and counts for the speed alone.
    stopped = statistics.mean(pause for pause, _ in speed.samples) / EVERY_SECONDS
    return {
        "peak_bytes": max(record.get("memory/peak_resident_bytes", 0.0) for record in records),
        "step_seconds": statistics.mean(seconds) / (1 + stopped),
        "flops_per_second": statistics.harmonic_mean(speed for _, speed in speed.samples),
        "lowest_flops_per_second": min(speed for _, speed in speed.samples),
        "highest_flops_per_second": max(speed for _, speed in speed.samples),
    }


def compared(name: str, folder: Path, steps: int, others: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """A recipe's plan beside its run, both at the speed that the machine had meanwhile; and by the pace of others."""
    words, run = words_of(name, folder, steps), folder / "runs" / name.replace(" ", "-")
    plan, took = planned(words), taken(words, run)
    plan["step_seconds"] *= plan["peak_flops"] / took["flops_per_second"]
    step_off = plan["step_seconds"] / took["step_seconds"] - 1
    # What --like reckons with, had the machine one speed over both runs: the share of it that the other run got.
    like = {other: (1 + step_off) / (1 + row["step_off"]) - 1 for other, row in others.items()}
    return {
        "recipe": RECIPES[name],
        "planned": plan,
        "taken": took,
        "memory_off": plan["needed_bytes"] / took["peak_bytes"] - 1,
        "step_off": step_off,
        "like": like,
    }


def is_steady(row: Mapping[str, Any]) -> bool:
    """Whether the machine had about one speed over a run."""
    return row["taken"]["highest_flops_per_second"] <= STEADY * row["taken"]["lowest_flops_per_second"]


def judged(found: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[float | None, float]]:
    """By how much the plans were off at most, and by how much they may be; None where no run was steady."""
    steady = {name: row for name, row in found.items() if is_steady(row)}
    steps = [abs(row["step_off"]) for row in steady.values()]
    likes = [abs(off) for row in steady.values() for other, off in row["like"].items() if other in steady]
    return {
        "memory": (max(abs(row["memory_off"]) for row in found.values()), MEMORY),
        "step from FLOPs alone": (max(steps, default=None), FLOPS_ALONE),
        "step like another recipe": (max(likes, default=None), CALIBRATED),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--only", choices=RECIPES)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in [arguments.only] if arguments.only else RECIPES:
            found[name] = row = compared(name, folder, arguments.steps, found)
            told = "".join(f", like {other} {off:+.1%}" for other, off in row["like"].items())
            print(f"{name}: memory {row['memory_off']:+.1%}, step {row['step_off']:+.1%}{told}", flush=True)
    worst = judged(found)
    for what, (off, most) in worst.items():
        print(f"{what}: {'no run was steady' if off is None else f'off by {off:.1%} at most, {most:.0%} allowed'}")
    if arguments.json:
        facts = {"machine": machine(), "load_average": load, "steps": arguments.steps, "recipes": found}
        checks = {what: {"off": off, "most": most} for what, (off, most) in worst.items()}
        arguments.json.write_text(json.dumps({**facts, "checks": checks}, indent=1) + "\n", encoding="utf-8")
    return int(any(off is not None and off > most for off, most in worst.values()))


if __name__ == "__main__":
    sys.exit(main())
