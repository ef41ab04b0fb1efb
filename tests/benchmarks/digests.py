"""What do the comparisons of weights and moments over processes cost at their default interval?

    python tests/benchmarks/digests.py [--json FILE]

For a model of Shakespeare's recipe and for one of GPT-2's size (124 million parameters, with AdamW's moments 1.5 GB): the median seconds of a
digest on this machine, and those of the smallest step that such a run would take (one sequence of 256 tokens). Ends with 1 when a digest every
`safety.digest_every_steps` takes more than 0.5 % of that step. The gathering of one number a rank is not in it.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.benchmarks.workload import machine
from trainer.config.unattended import SafetyConfig
from trainer.safety.digests import digest_of, replicated_tensors

MOST = 0.005
SHAPES = {"small": {"n_layer": 4, "n_embd": 192, "n_head": 6, "vocab_size": 4096}, "124m": {}}


def median_seconds(work: Callable[[], object], rounds: int) -> float:
    """Of several rounds after one that does not count."""
    found = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return statistics.median(found[1:])


def measured(shape: dict[str, int], rounds: int) -> dict[str, float]:
    """Seconds of a digest and of a step, and the share of the one in the other."""
    model = GPT2LMHeadModel(GPT2Config(**shape))
    optimizer = torch.optim.AdamW(model.parameters())
    tokens = torch.zeros((1, 256), dtype=torch.int64)

    def step() -> None:
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step_seconds = median_seconds(step, rounds)
    tensors = replicated_tensors(model, optimizer)
    digest_seconds = median_seconds(lambda: int(digest_of(tensors, torch.device("cpu"))), rounds)
    share = digest_seconds / SafetyConfig().digest_every_steps / step_seconds
    return {"step_seconds": step_seconds, "digest_seconds": digest_seconds, "share": share}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    typed = parser.parse_args()
    found = {name: measured(shape, 5) for name, shape in SHAPES.items()}
    for name, numbers in found.items():
        print(name, {key: round(value, 6) for key, value in numbers.items()})
    if typed.json:
        typed.json.write_text(json.dumps({"machine": machine(), "most": MOST, "models": found}) + "\n")
    return int(max(numbers["share"] for numbers in found.values()) > MOST)


if __name__ == "__main__":
    sys.exit(main())
