"""How much speed is left beside other work, and what does that cost on a quiet machine?

    python tests/benchmarks/contention.py [rounds] [--recipe NAME] [--json FILE] [KEY=VALUE ...]

Threads of OpenMP that wait for each other spin, and where one of them has no core the others spin in vain. Processes that train the recipe
with different waiting (OMP_WAIT_POLICY, GOMP_SPINCOUNT) are all started first and then take some steps in turn: alone, beside one process
that multiplies matrices in as many threads as there are cores, and beside two. Ends with 1 unless the waiting that a launch sets
(trainer/config/waiting.py) leaves at least 45 % of its quiet speed beside one busy process, and its quiet speed is at most 4 % below the default's.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))
from trainer.config.waiting import waiting  # noqa: E402

CHOSEN = "as launched"
SETTINGS: dict[str, dict[str, str]] = {
    "default": {},
    "passive": {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"},
    **{f"spin {count:,}": {"GOMP_SPINCOUNT": str(count)} for count in (1_000, 3_000, 10_000)},
}
"""What is compared: the environment by its name."""

MIN_SPEED_LEFT, MAX_QUIET_COST = 0.45, 0.04
STEPS_A_VISIT = 5
"""Steps in a row of one process; the first, in which caches and threads wake, is not counted."""
LONGEST_VISIT_SECONDS = 10.0


def train_when_asked(recipe: str, overrides: list[str]) -> None:
    """A process that trains: takes steps for each line on its standard input, and answers with their seconds."""
    import time

    import torch

    from tests.benchmarks.workload import WARM_UP_STEPS, Workload

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    workload = Workload(recipe, *overrides)
    optimizer = workload.optimizer()

    def step() -> float:
        return workload.gradients() + workload.update(optimizer)

    for _ in range(WARM_UP_STEPS):
        step()
    print("[]", flush=True)
    for _ in sys.stdin:
        ends, seconds = time.perf_counter() + LONGEST_VISIT_SECONDS, []
        while len(seconds) < STEPS_A_VISIT and (not seconds or time.perf_counter() < ends):
            seconds.append(step())
        print(json.dumps(seconds[1:] or seconds), flush=True)


def multiply() -> None:
    """The other work: products of matrices in every thread, for as long as it lives."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    left = torch.randn(1024, 1024)
    while True:
        left @ left


class Trainee:
    """A process that trains when it is asked to."""

    def __init__(self, environment: dict[str, str], recipe: str, overrides: list[str]) -> None:
        kept = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--train", "--recipe", recipe, "1", *overrides],
            env={**kept, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def _answer(self) -> list[float]:
        return json.loads(self._process.stdout.readline())

    def steps(self) -> list[float]:
        """Seconds of some steps taken now."""
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self._answer()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def measure(recipe: str, overrides: list[str], rounds: int) -> dict[str, Any]:
    """Median seconds of a step by what else is going on and by setting."""
    settings = {
        **{name: environment for name, environment in SETTINGS.items() if environment != waiting({})},
        CHOSEN: waiting({}),
    }
    trainees = {name: Trainee(environment, recipe, overrides) for name, environment in settings.items()}
    busy = [subprocess.Popen([sys.executable, __file__, "--multiply"]) for _ in range(2)]
    found: dict[int, dict[str, list[float]]] = {
        number: {name: [] for name in settings} for number in range(len(busy) + 1)
    }
    try:
        for _ in range(rounds):
            for number, rows in found.items():
                for position, process in enumerate(busy):
                    process.send_signal(signal.SIGCONT if position < number else signal.SIGSTOP)
                for name, trainee in trainees.items():
                    rows[name] += (seconds := trainee.steps())
                    print(
                        f"beside {number}: {name:14s} {statistics.median(seconds):8.3f} s", file=sys.stderr, flush=True
                    )
    finally:
        for process in busy:
            process.kill()
        for trainee in trainees.values():
            trainee.end()
    medians = {
        number: {name: statistics.median(seconds) for name, seconds in rows.items()} for number, rows in found.items()
    }
    return {"recipe": recipe, "overrides": overrides, "rounds": rounds, "settings": settings, "step_seconds": medians}


def show(step_seconds: dict[int, dict[str, float]]) -> None:
    """A line for each setting: seconds of a step, and the share of the setting's own quiet speed that is left."""
    quiet = step_seconds[0]
    print(
        f"\n{'':14s}  quiet step  beside the default  "
        + "  ".join(f"beside {number} busy: step, speed left" for number in list(step_seconds)[1:])
    )
    for name, seconds in quiet.items():
        others = "  ".join(
            f"{rows[name]:20.3f} s {seconds / rows[name]:9.0%}" for number, rows in step_seconds.items() if number
        )
        print(f"{name:14s}  {seconds:8.3f} s  {seconds / quiet['default'] - 1:+17.1%}  {others}")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("rounds", nargs="?", type=int, default=4)
    parser.add_argument("--recipe", default="shakespeare")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--multiply", action="store_true")
    parser.add_argument("overrides", nargs="*")
    typed = parser.parse_intermixed_args()
    overrides = typed.overrides
    if typed.multiply:
        multiply()
    if typed.train:
        train_when_asked(typed.recipe, overrides)
        return 0
    result = measure(typed.recipe, overrides, typed.rounds)
    show(result["step_seconds"])
    if typed.json:
        from tests.benchmarks.workload import machine

        typed.json.write_text(json.dumps({"machine": machine(), **result}, indent=1) + "\n", encoding="utf-8")
    quiet, beside = result["step_seconds"][0], result["step_seconds"][1]
    held = quiet[CHOSEN] / beside[CHOSEN] >= MIN_SPEED_LEFT and quiet["default"] / quiet[CHOSEN] >= 1 - MAX_QUIET_COST
    print("held" if held else "NOT held")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
