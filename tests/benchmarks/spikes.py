"""Would a healthy run have had a step skipped as a spike, and what does the guard cost?

    python tests/benchmarks/spikes.py [--steps 600] [--json FILE]

Trains small models on Shakespeare in five healthy ways (AdamW and Muon, fp32 and bf16, warm-up, stable stretch and decay), with spikes only
told, and writes down the highest score that any step had. Then it times the guard's judgement of a step, and the random streams that are kept of it,
beside the median step of a run. Ends with 1 when a step of a healthy run stands above the default `safety.spike.score`.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.benchmarks.workload import machine
from tests.launching import Started, steps
from trainer.config.unattended import SpikeConfig
from trainer.safety.spikes import SpikeGuard

RECIPE = """
name: healthy
base: shakespeare
max_steps: {steps}
global_batch: 8
micro_batch: 8
sequence_length: 128
model: {{config: {{num_hidden_layers: 4, hidden_size: 192, num_attention_heads: 6, num_key_value_heads: 6, intermediate_size: 512}}}}
schedule: {{warmup_steps: {warmup}}}
evaluation: {{every_steps: {steps}, sample_tokens: 0}}
safety: {{spike: {{skip: false}}}}
checkpoints_folder: {folder}/checkpoints
runs_folder: {folder}/runs
"""

WAYS = {
    "adamw, fp32, cosine": ("no", ["optimizer.name=adamw", "optimizer.lr=0.001"]),
    "muon, fp32, cosine": ("no", []),
    "adamw, bf16, wsd": ("bf16", ["optimizer.name=adamw", "optimizer.lr=0.001", "schedule.name=wsd"]),
    "muon, bf16, wsd": ("bf16", ["schedule.name=wsd"]),
    "adamw, fp32, high rate, no warm-up": (
        "no",
        ["optimizer.name=adamw", "optimizer.lr=0.004", "schedule.name=linear", "schedule.warmup_steps=0"],
    ),
}
"""mixed_precision and overrides, by name."""


def tell_scores(path: str) -> None:
    """In the process of a run: every step's score goes into a file."""
    take = SpikeGuard.take

    def told(self: SpikeGuard, result) -> None:
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{result.step} {result.score} {result.loss} {result.grad_norm}\n")
        take(self, result)

    SpikeGuard.take = told


def healthy(way: str, num_steps: int) -> dict[str, float]:
    """Trains in one way; the highest score, its step, and the median step."""
    precision, overrides = WAYS[way]
    with tempfile.TemporaryDirectory() as folder:
        recipe, scores = Path(folder) / "healthy.yaml", Path(folder) / "scores"
        recipe.write_text(RECIPE.format(steps=num_steps, warmup=num_steps // 10, folder=folder))
        environment = {"ACCELERATE_MIXED_PRECISION": precision, "OMP_NUM_THREADS": "2"}
        run = Started(recipe, overrides, 1, partial(tell_scores, str(scores)), environment=environment)
        code = run.wait(3000)
        assert code == 0, run.text()
        rows = [[float(word) for word in line.split()] for line in scores.read_text().splitlines()]
        step, score, *_ = max(rows, key=lambda row: row[1])
        seconds = statistics.median(record["step_seconds"] for record in steps(recipe, "healthy"))
    return {"highest_score": score, "at_step": step, "step_seconds": seconds, "last_loss": rows[-1][2]}


def guard_seconds(number: int = 2000) -> float:
    """Median seconds that judging a step and keeping its random streams takes."""
    guard, loss, norm = SpikeGuard(SpikeConfig(), torch.device("cpu")), torch.tensor(2.5), torch.tensor(1.0)
    found = []
    for _ in range(number):
        started = time.perf_counter()
        guard.judge(loss, norm)
        torch.get_rng_state()
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--json", type=Path)
    typed = parser.parse_args()
    found = {}
    for way in WAYS:
        found[way] = healthy(way, typed.steps)
        print(way, {key: round(value, 4) for key, value in found[way].items()}, flush=True)
    cost = guard_seconds()
    print(f"the guard takes {1e6 * cost:.0f} us a step")
    if typed.json:
        result = {"machine": machine(), "steps": typed.steps, "ways": found, "guard_seconds": cost}
        typed.json.write_text(json.dumps(result) + "\n")
    return int(max(way["highest_score"] for way in found.values()) > SpikeConfig().score)


if __name__ == "__main__":
    sys.exit(main())
