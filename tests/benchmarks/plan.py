"""Is `trainer plan` right? What it says before a run beside what the run then takes, on this machine's CPUs.

    python tests/benchmarks/plan.py [--steps 50] [--json FILE]

Three recipes that need memory for different things are planned and then launched, one after another: peak memory of the process against
`needed_bytes`, the median step against the one from FLOPs alone, and against the one that `--like` another of the three gives. Nothing else
may run meanwhile. Ends with 1 when memory is off by more than a tenth, a step by more than 30 %, or by more than 15 % with `--like`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))
from tests.benchmarks.workload import machine  # noqa: E402
from trainer.metrics.curves import CURVE, read_records  # noqa: E402

MEMORY, FLOPS_ALONE, CALIBRATED = 0.10, 0.30, 0.15
WARM_UP_STEPS = 5
STEADY, ATTEMPTS = 0.10, 4
"""How much the product that a plan measures may change over a run, and how often a run is tried."""

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


def taken(words: list[str], run: Path) -> dict[str, float]:
    """What the run took: its peak, and the median of its steps."""
    trainer("launch", *words)
    records = read_records(run / CURVE)
    seconds = [r["step_seconds"] for r in records if "step_seconds" in r and r["step"] > WARM_UP_STEPS]
    peak = max(record.get("memory/peak_resident_bytes", 0.0) for record in records)
    return {"peak_bytes": peak, "step_seconds": statistics.median(seconds)}


def compared(name: str, folder: Path, steps: int) -> dict[str, Any]:
    """A recipe's plan beside its run; again where the machine had another speed after it than before, as those shared with others have."""
    for attempt in range(1, ATTEMPTS + 1):
        words = words_of(name, folder / str(attempt), steps)
        before = planned(words)
        took = taken(words, folder / str(attempt) / "runs" / name.replace(" ", "-"))
        after = planned(words)
        change = after["peak_flops"] / before["peak_flops"] - 1
        print(f"{name}: attempt {attempt}: {took}, the machine's speed {change:+.0%}", flush=True)
        if abs(change) <= STEADY:
            break
    step = 2 / (1 / before["step_seconds"] + 1 / after["step_seconds"])
    return {
        "recipe": RECIPES[name],
        "attempts": attempt,
        "is_steady": abs(change) <= STEADY,
        "planned": {**before, "step_seconds": step, "peak_flops": [before["peak_flops"], after["peak_flops"]]},
        "taken": took,
        "memory_off": before["needed_bytes"] / took["peak_bytes"] - 1,
        "step_off": step / took["step_seconds"] - 1,
        "run": str(folder / str(attempt) / "runs" / name.replace(" ", "-")),
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
            row = compared(name, folder, arguments.steps)
            words = words_of(name, folder, arguments.steps)
            likes = {other: planned(words, "--like", found[other]["run"])["step_seconds"] for other in found}
            row["like"] = {other: seconds / row["taken"]["step_seconds"] - 1 for other, seconds in likes.items()}
            found[name] = row
            told = "".join(f", like {other} {off:+.1%}" for other, off in row["like"].items())
            print(f"{name}: memory {row['memory_off']:+.1%}, step {row['step_off']:+.1%}{told}", flush=True)
        for row in found.values():
            del row["run"]
    worst = {
        "memory": (max(abs(row["memory_off"]) for row in found.values()), MEMORY),
        "step from FLOPs alone": (max(abs(row["step_off"]) for row in found.values()), FLOPS_ALONE),
        "step like another recipe": (
            max((abs(off) for row in found.values() for off in row["like"].values()), default=0.0),
            CALIBRATED,
        ),
    }
    for what, (off, most) in worst.items():
        print(f"{what}: off by {off:.1%} at most, {most:.0%} allowed")
    if arguments.json:
        facts = {"machine": machine(), "load_average": load, "steps": arguments.steps, "recipes": found}
        checks = {what: {"off": off, "most": most} for what, (off, most) in worst.items()}
        arguments.json.write_text(json.dumps({**facts, "checks": checks}, indent=1) + "\n", encoding="utf-8")
    return int(any(off > most for off, most in worst.values()))


if __name__ == "__main__":
    sys.exit(main())
