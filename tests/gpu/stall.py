"""Part `stall`: what a checkpoint in the background costs the training thread, by tests/benchmarks/checkpoint_stall.py."""

import contextlib
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
    """Sixty saves of GPT-2 124M between updates; emulated a few of a small one in this process, whose times are held against nothing."""
    if found := record.piece("saves", functools.partial(_run, scene)):
        for name, bar in BARS.items():
            value = found["checks"][name]
            record.check(
                f"a save holds the training thread, {name}",
                value,
                f"at most {bar} s",
                held=value <= bar or scene.emulated,
            )
        for name in ("update", "update_without_save"):
            record.check(
                f"{name.replace('_', ' ')}, seconds",
                found["medians"][name],
                "no bar: an update at once after a save waits for its copies",
                held=True,
            )


def _run(scene: Scene) -> dict[str, Any]:
    """What the benchmark wrote; its exit code says the same as the checks."""
    scene.work.mkdir(parents=True, exist_ok=True)
    if scene.emulated:
        with contextlib.chdir(scene.work):
            found = checkpoint_stall.measure_between_updates(
                2, on_cuda=False, shape={"n_layer": 1, "n_embd": 64, "n_head": 1}
            )
        return {"medians": found, "checks": {"p50 seconds": found["p50"], "p99 seconds": found["p99"]}}
    path = scene.work / "checkpoint_stall.json"
    path.unlink(missing_ok=True)
    words = [sys.executable, str(BENCHMARK), "60", "--cuda", "--json", str(path)]
    ended = subprocess.run(words, cwd=scene.work, stderr=subprocess.PIPE, text=True, check=False)
    assert path.exists(), f"the benchmark ended with {ended.returncode}:\n{ended.stderr[-3000:]}"
    return json.loads(path.read_text())
