"""Runs that never trained: their folders, written with the losses that a test wants."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from trainer.tools.compare.judge import Comparison, judge
from trainer.tools.compare.runs import read_runs

STEP_TOKENS = 1000

SETTINGS = {
    "max_steps": 200,
    "global_batch": 10,
    "micro_batch": 10,
    "sequence_length": 100,
    "data": {"corpus": "plays", "tokenizer": None},
    "optimizer": {"lr": 0.001},
    "schedule": {"name": "cosine", "warmup_steps": 5},
}


def losses(number: int = 200, *, seed: int = 0, noise: float = 0.02, memory: float = 0.5) -> np.ndarray:
    """A falling loss [number] with noise that remembers the step before, as the batches of one seed make it."""
    generator = np.random.default_rng(seed)
    walk = np.zeros(number)
    for step in range(1, number):
        walk[step] = memory * walk[step - 1] + generator.normal(0, noise)
    return 3 + 4 * (np.arange(number) + 5.0) ** -0.5 + walk


def write_run(
    project: Path,
    name: str,
    curve: Sequence[float],
    *,
    seed: int = 1,
    step_tokens: int = STEP_TOKENS,
    step_seconds: float = 36.0,
    evaluations: dict[int, dict[str, float]] | None = None,
    precision: str | None = "bf16",
    settings: dict[str, Any] | None = None,
    outcome: str = "finished",
) -> Path:
    """Writes runs/NAME of a project; `evaluations` are facts by step. Two runs of one seed have the same batches."""
    folder = project / "runs" / name
    folder.mkdir(parents=True)
    content = {**SETTINGS, "name": name, "seed": seed, "checkpoints_folder": "checkpoints", **(settings or {})}
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    lines = []
    for step, loss in enumerate(curve, start=1):
        record = {
            "step": step,
            "tokens": step * step_tokens,
            "lr": 0.001,
            "data_digest": f"{seed}-{step}",
            "loss": float(loss),
            "grad_norm": 1.0,
        }
        lines.append(
            {**record, "tokens_per_second": step_tokens / step_seconds, "step_seconds": step_seconds, "mfu": 0.4}
        )
        if step in (evaluations or {}):
            lines.append({"step": step, "tokens": step * step_tokens, **evaluations[step], "seconds": 1.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "outcome.json").write_text(json.dumps({"outcome": outcome, "step": len(curve)}))
    start = {
        "event": "start",
        "processes": 4,
        "machine": "4 processes on a GPU each",
        **({"precision": precision} if precision else {}),
    }
    (folder / "journal.jsonl").write_text(json.dumps(start) + "\n")
    return folder


def compared(*folders: Path) -> Comparison:
    return judge(read_runs([str(folder) for folder in folders]))
