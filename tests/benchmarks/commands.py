"""How much CPU time does each command of `trainer checkpoints` take?

    python tests/benchmarks/commands.py [checkpoints]

Every command in a fresh process, over a folder of that many small checkpoints (default 20); the median of five. What reading adds
on two cores and a virtual disk, for a checkpoint of 1.56 GB: `verify` 0.4 CPU-seconds, `copy` 4, `diff` at most 0.2 (tensors are read up to
their first difference). Ends with 1 when one takes half a CPU-second or more, or loads torch.
"""

import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))
from tests.small_checkpoints import commit  # noqa: E402
from trainer.checkpoint.format.store import CheckpointStore  # noqa: E402

MAX_CPU_SECONDS = 0.5


def cpu_seconds(words: list[str]) -> float:
    """User and system time of one command in a process of its own."""
    before = os.times()
    run_command(words)
    after = os.times()
    return after.children_user - before.children_user + after.children_system - before.children_system


def run_command(words: list[str], *options: str) -> str:
    """Runs one command; returns what it wrote to standard error."""
    command = [sys.executable, *options, "-m", "trainer", "checkpoints", *words]
    ended = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-500:]
    return ended.stderr


def check_imports(words: list[str]) -> None:
    """Asserts that a command imports nothing heavy."""
    heavy = re.findall(
        r"\|\s+(torch|transformers|accelerate|numpy)$", run_command(words, "-X", "importtime"), re.MULTILINE
    )
    assert not heavy, f"{words[0]} imports {', '.join(heavy)}"


def main() -> None:
    """Prints a line a command."""
    number, slowest = int(sys.argv[1]) if len(sys.argv) > 1 else 20, 0.0
    with tempfile.TemporaryDirectory() as folder:
        store = CheckpointStore(Path(folder) / "run")
        for step in range(1, number + 1):
            commit(store, step, val_loss=float(step))
        run = str(store.folder)
        commands = [
            ["ls", run],
            ["ls", run, "--json"],
            ["show", run],
            ["diff", run, "1", "2"],
            ["verify", run],
            ["pin", run, "1"],
            ["unpin", run, "1"],
            ["prune", run, "--dry-run"],
            ["prune", run],
        ]
        for words in commands:
            check_imports(words)
            seconds = statistics.median(cpu_seconds(words) for _ in range(5))
            slowest = max(slowest, seconds)
            print(f"{' '.join([words[0], *words[2:]]):20s} {seconds:.3f} CPU-seconds")
        copies = [cpu_seconds(["copy", run, "latest", f"{folder}/copy-{n}"]) for n in range(5)]
        slowest = max(slowest, statistics.median(copies))
        print(f"{'copy':20s} {statistics.median(copies):.3f} CPU-seconds")
    sys.exit(slowest >= MAX_CPU_SECONDS)


if __name__ == "__main__":
    main()
