"""What does watching cost? The share of a training step that goes into writing it down, drawing and measuring.

    python tests/benchmarks/monitoring.py [steps] [--recipe NAME] [--json FILE] [KEY=VALUE ...]

Trains the recipe (the default one, shakespeare) as its cluster file for a CPU would, and counts the CPU time that the training thread spends
inside everything of `trainer/metrics`: the stopwatch, the probes around the update, histograms included as often as they come, the record of
the step, the log and the bar. Its share of the steps' CPU time (evaluations and saves apart) must be at most 0.5 %. Beside it stands what
the other threads took that draw and sample: they do not hold training, but they take a core for that long. Ends with 1 above the bar.
"""

import argparse
import functools
import json
import os
import platform
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))
os.environ |= {
    "ACCELERATE_USE_CPU": "true",
    "ACCELERATE_MIXED_PRECISION": "no",
    "ACCELERATE_DYNAMO_BACKEND": "inductor",
    "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "true",
    "ACCELERATE_DYNAMO_USE_FULLGRAPH": "false",
    "ACCELERATE_DYNAMO_USE_DYNAMIC": "false",
    "ACCELERATE_DYNAMO_MODE": "default",
}

import psutil  # noqa: E402
import torch  # noqa: E402

from trainer import loop  # noqa: E402
from trainer.config.load import load  # noqa: E402
from trainer.metrics.probes import Probes  # noqa: E402
from trainer.metrics.reporter import Reporter, StepFacts  # noqa: E402
from trainer.metrics.stopwatch import Stopwatch  # noqa: E402
from trainer.session import run_session  # noqa: E402

MAX_SHARE = 0.005
WARM_UP_STEPS = 20
"""Steps that are not counted: the first ones fill caches."""


class Account:
    """CPU and wall time of the training thread, by what it was spent on; time inside a nested call counts once."""

    def __init__(self) -> None:
        self.cpu: Counter[str] = Counter()
        self.wall: Counter[str] = Counter()
        self._inside = False

    def reset(self) -> None:
        self.cpu.clear()
        self.wall.clear()

    def of(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its time on this account."""

        @functools.wraps(function)
        def counted(*args: Any, **keywords: Any) -> Any:
            if self._inside or threading.current_thread() is not threading.main_thread():
                return function(*args, **keywords)
            self._inside, cpu, wall = True, time.thread_time(), time.perf_counter()
            try:
                return function(*args, **keywords)
            finally:
                self.cpu[name] += time.thread_time() - cpu
                self.wall[name] += time.perf_counter() - wall
                self._inside = False

        return counted

    def around(self, name: str, make: Callable[..., Any]) -> Callable[..., Any]:
        """A function that makes a context manager, with the time of its two ends on this account, and not what it is around."""
        account = self

        class Counted:
            def __init__(self, *args: Any) -> None:
                self._context = account.of(name, make)(*args)

            def __enter__(self) -> Any:
                return account.of(name, self._context.__enter__)()

            def __exit__(self, *error: Any) -> Any:
                return account.of(name, self._context.__exit__)(*error)

        return lambda *args: Counted(*args)


def thread_seconds() -> dict[str, float]:
    """CPU seconds of each Python thread of this process, by its name."""
    spent = {thread.id: thread.user_time + thread.system_time for thread in psutil.Process().threads()}
    found: Counter[str] = Counter()
    for thread in threading.enumerate():
        found[thread.name if thread.name in ("drawing", "sampling") else type(thread).__name__] += spent.get(
            thread.native_id, 0.0
        )
    return dict(found)


def measure(recipe: str, steps: int, overrides: list[str]) -> dict[str, Any]:
    """Trains, and returns the shares."""
    account, others, marks = Account(), Account(), {}
    for name in ("lap", "end_step"):
        setattr(Stopwatch, name, account.of("stopwatch", getattr(Stopwatch, name)))
    Probes.around_update = account.around("probes", Probes.around_update)
    Probes.take = account.of("probes", Probes.take)
    for name in ("write", "evaluation", "text", "saved"):
        setattr(Reporter, name, account.of("reporter", getattr(Reporter, name)))
    loop.evaluate, loop.save = others.of("evaluate", loop.evaluate), others.of("save", loop.save)
    step, close = account.of("reporter", Reporter.step_taken), Reporter.close

    def counted_step(self: Reporter, facts: StepFacts) -> None:
        if facts.step == WARM_UP_STEPS:
            account.reset()
            others.reset()
            marks.update(cpu=time.thread_time(), wall=time.perf_counter(), threads=thread_seconds())
        step(self, facts)

    def counted_close(self: Reporter, **how: Any) -> None:
        marks.update(ended_cpu=time.thread_time(), ended_wall=time.perf_counter(), ended_threads=thread_seconds())
        close(self, **how)

    Reporter.step_taken, Reporter.close = counted_step, counted_close
    with tempfile.TemporaryDirectory() as folder:
        settings = [
            f"max_steps={steps}",
            f"runs_folder={folder}/runs",
            f"checkpoints_folder={folder}/checkpoints",
            *overrides,
        ]
        assert run_session(load(recipe, settings).config) == 0
        size = sum(path.stat().st_size for path in Path(folder, "runs").rglob("events.out.tfevents.*"))
    counted = steps - WARM_UP_STEPS
    cpu = marks["ended_cpu"] - marks["cpu"] - sum(others.cpu.values())
    wall = marks["ended_wall"] - marks["wall"] - sum(others.wall.values())
    beside = {name: marks["ended_threads"].get(name, 0.0) - before for name, before in marks["threads"].items()}
    return {
        "recipe": recipe,
        "steps": counted,
        "step_seconds": wall / counted,
        "share": sum(account.cpu.values()) / cpu,
        "wall_share": sum(account.wall.values()) / wall,
        "milliseconds_a_step": {name: 1000 * seconds / counted for name, seconds in account.cpu.items()},
        "beside": {
            name: seconds / wall
            for name, seconds in beside.items()
            if name in ("drawing", "sampling", "_AsyncWriterThread")
        },
        "event_bytes_a_step": size / steps,
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
        },
    }


def main() -> None:
    """Prints the shares; ends with 1 above the bar."""
    parser = argparse.ArgumentParser()
    parser.add_argument("steps", type=int, nargs="?", default=220)
    parser.add_argument("--recipe", default="shakespeare")
    parser.add_argument("--json", type=Path)
    parser.add_argument("overrides", nargs="*")
    typed = parser.parse_intermixed_args()
    result = measure(typed.recipe, typed.steps, typed.overrides)
    print(f"\n{result['recipe']}: {result['steps']} steps of {result['step_seconds']:.3f} s")
    for name, milliseconds in result["milliseconds_a_step"].items():
        print(f"  {name:10s} {milliseconds:7.3f} ms of the training thread a step")
    print(
        f"  in all {result['share']:.2%} of the steps' CPU time ({result['wall_share']:.2%} of their time); the bar is {MAX_SHARE:.1%}"
    )
    for name, share in result["beside"].items():
        print(f"  beside it, {name}: {share:.2%} of one core")
    print(f"  event files: {result['event_bytes_a_step']:.0f} bytes a step")
    if typed.json:
        typed.json.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(result["share"] > MAX_SHARE)


if __name__ == "__main__":
    main()
