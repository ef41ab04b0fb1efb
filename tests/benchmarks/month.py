"""How long do answers about a month of short steps take, and how much memory?

    python tests/benchmarks/month.py [--steps 15000000] [--whole] [--json FILE]

Writes two runs of that many steps, thinly (index and end are real, what nobody reads is a hole of the disk) or `--whole` (every record, the
index made by following them), and asks each question in a process of its own: `report` (and what it tells of the journal), `status`, what a
resume reads, `compare`. Seconds are without the start of Python. Ends with 1 where one takes more of the processor than it may (on a machine
that does nothing else the two are the same).
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from tests.month import STEPS, record_line, write_facts, write_thinly  # noqa: E402
from trainer.metrics.curves import CURVE  # noqa: E402
from trainer.metrics.index import INDEX, CurveIndex  # noqa: E402

QUESTIONS = {
    "report": (
        1.0,
        "from trainer.report import report",
        "report('a', runs / 'a', runs.parent / 'checkpoints', None)",
    ),
    "status": (
        1.0,
        "from trainer.history.screen import screen\nfrom trainer.history.standing import present, standing_of",
        "screen(standing_of(runs / 'a', present()), present(), 80)",
    ),
    "account": (
        3.0,
        "from trainer.history.account import account_of, text",
        "text(account_of(runs / 'a'))",
    ),
    "resume": (
        1.0,
        "\n".join(
            (
                "from trainer.metrics.curves import CURVE, cut_after, lost_records",
                "from trainer.metrics.index import CurveIndex",
                "from trainer.metrics.trackers import begin_of_drawing",
                "from trainer.journal import events_from",
            )
        ),
        ", ".join(
            (
                "cut_after(runs / 'b', steps - 30), list(lost_records(runs / 'b', steps - 30, 0)), CurveIndex(runs / 'b').draw()",
                "begin_of_drawing(runs / 'b', 'wandb', None)",
                "sum(1 for _ in events_from(runs / 'b', 'start', 'resume', 'save', 'stop'))",
            )
        ),
    ),
    "compare": (
        10.0,
        "from trainer.tools.compare.judge import judge\nfrom trainer.tools.compare.runs import read_runs\nfrom trainer.tools.compare.show import text",
        "text(judge(read_runs([str(runs / 'a'), str(runs / 'b')])))",
    ),
}
"""Question -> (seconds that it may take, imports, what is timed)."""

ASKING = """
import json, resource, sys, time
from pathlib import Path
runs, steps = Path(sys.argv[1]), int(sys.argv[2])
{imports}
before, began, cpu = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter(), time.process_time()
{question}
spent = {{"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}}
print(json.dumps({{**spent, "more_memory_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024}}))
"""


def write_whole(folder: Path, seed: int, steps: int) -> None:
    """A run with every record, and its index made as a run makes it."""
    write_facts(folder, seed, steps)
    with open(folder / CURVE, "w", buffering=1 << 22) as curve:
        curve.writelines(record_line(step, seed) for step in range(1, steps + 1))
    follower, before = CurveIndex(folder), -1
    while follower.position != before:
        before = follower.position
        follower.draw()


def asked(runs: Path, steps: int, imports: str, question: str) -> dict[str, float]:
    """What one question took, in a process of its own."""
    code = ASKING.format(imports=imports, question=question)
    done = subprocess.run(
        [sys.executable, "-c", code, str(runs), str(steps)], cwd=PROJECT, check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def measure(steps: int, *, whole: bool) -> dict[str, Any]:
    """What every question took."""
    with tempfile.TemporaryDirectory() as temporary:
        runs = Path(temporary) / "runs"
        for name, seed in (("a", 1), ("b", 2)):
            (write_whole if whole else write_thinly)(runs / name, seed, steps)
        result = {
            "steps": steps,
            "whole": whole,
            "curve_bytes": (runs / "a" / CURVE).stat().st_size,
            "index_bytes": (runs / "a" / INDEX).stat().st_size,
            "load_average": os.getloadavg()[0],
            "machine": {"cpu": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
        }
        return {**result, **{name: asked(runs, steps, *how) for name, (_, *how) in QUESTIONS.items()}}


def main() -> None:
    """Prints what was measured; ends with 1 above a bar."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--json", type=Path)
    typed = parser.parse_args()
    result = measure(typed.steps, whole=typed.whole)
    print(json.dumps(result, indent=1))
    if typed.json:
        typed.json.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(any(result[name]["cpu_seconds"] > bar for name, (bar, *_) in QUESTIONS.items()))


if __name__ == "__main__":
    main()
