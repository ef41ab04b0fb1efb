"""Part `stall`: what a checkpoint in the background costs the training thread, by tests/benchmarks/checkpoint_stall.py."""

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.benchmarks import checkpoint_stall
from tests.gpu.record import Record
from tests.gpu.runs import Scene

BENCHMARK = Path(checkpoint_stall.__file__)
BARS = {"p50 seconds": checkpoint_stall.MAX_CUDA_P50_SECONDS, "p99 seconds": checkpoint_stall.MAX_CUDA_P99_SECONDS}


def measure(scene: Scene, record: Record) -> None:
    """Sixty saves of GPT-2 124M between updates; emulated nothing, since its figures on a CPU are others."""
    if scene.emulated:
        record.check("stalls of saves", "not gone through: the benchmark runs on a CPU without this script", "none", held=True)
    elif found := record.piece("saves", functools.partial(_run, scene)):
        for name, bar in BARS.items():
            value = found["checks"][name]
            record.check(f"a save holds the training thread, {name}", value, f"at most {bar} s", held=value <= bar)


def _run(scene: Scene) -> dict[str, Any]:
    """What the benchmark wrote; its exit code says the same as the checks."""
    scene.work.mkdir(parents=True, exist_ok=True)
    path = scene.work / "checkpoint_stall.json"
    path.unlink(missing_ok=True)
    words = [sys.executable, str(BENCHMARK), "60", "--cuda", "--json", str(path)]
    ended = subprocess.run(words, cwd=scene.work, stderr=subprocess.PIPE, text=True, check=False)
    assert path.exists(), f"the benchmark ended with {ended.returncode}:\n{ended.stderr[-3000:]}"
    return json.loads(path.read_text())
