"""What does all that watches over a run take of a step, at defaults, on a quiet machine?

    python tests/benchmarks/watching.py [--json FILE]

Guard, digest (divided by its interval), beat, one event of the journal (a run writes one a minute at most, here it is counted at every step)
and what the process of the launch does each second (a look at a silent rank, and one at the journal for alerts), each as seconds and as share of a
step of the Shakespeare recipe, the last two of a second. Ends with 1 when guard and digest together take more than 0.5 %, or beat and journal more than 0.1 % each, or the launch more than 0.5 % of a core.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.benchmarks.workload import WARM_UP_STEPS, Workload, machine
from trainer import beats
from trainer.alerts.watch import Tail
from trainer.config.unattended import HangConfig, SafetyConfig, SpikeConfig
from trainer.journal import JOURNAL, Journal
from trainer.safety.digests import digest_of, replicated_tensors
from trainer.safety.hang_watch import HangWatch
from trainer.safety.spikes import SpikeGuard

MOST_OF_GUARD_AND_DIGEST, MOST_OF_OTHERS, MOST_OF_A_SECOND = 0.005, 0.001, 0.005
EACH_SECOND = ("look", "alerts")


def median_seconds(work: Callable[[], object], rounds: int) -> float:
    found = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def measure(folder: Path) -> dict[str, float]:
    """Seconds of a step, and of each that watches, by its name."""
    workload = Workload("shakespeare")
    optimizer = workload.optimizer()

    def step() -> None:
        workload.gradients()
        workload.update(optimizer)

    median_seconds(step, WARM_UP_STEPS)
    seconds = {"step": median_seconds(step, 20)}

    guard, loss, norm = SpikeGuard(SpikeConfig(), torch.device("cpu")), torch.tensor(2.5), torch.tensor(1.0)
    seconds["guard"] = median_seconds(lambda: (guard.judge(loss, norm), torch.get_rng_state()), 2000)
    tensors = replicated_tensors(workload.bare, optimizer)
    digest = median_seconds(lambda: int(digest_of(tensors, torch.device("cpu"))), 20)
    seconds["digest"] = digest / SafetyConfig().digest_every_steps

    with beats.Board(2) as board:
        os.environ.update(board.environment)
        seconds["beat"] = median_seconds(lambda: beats.beat(7), 2000)
        watch = HangWatch(HangConfig(), board.read, 1)
        seconds["look"] = median_seconds(watch.look, 500)
    journal, tail = Journal(folder), Tail(folder / JOURNAL)
    seconds["journal"] = median_seconds(lambda: journal.write("save", step=7, digest="0" * 32), 500)
    seconds["alerts"] = median_seconds(tail.read, 500)
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    typed = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(Path(folder))
    shares = {
        name: found / (1.0 if name in EACH_SECOND else seconds["step"])
        for name, found in seconds.items()
        if name != "step"
    }
    print(f"a step takes {seconds['step']:.3f} s")
    for name, share in shares.items():
        print(f"{name:8s} {1e6 * seconds[name]:8.1f} us  {share:9.4%} of it")
    if typed.json:
        typed.json.write_text(json.dumps({"machine": machine(), "seconds": seconds, "shares": shares}) + "\n")
    each_step = max(shares["beat"], shares["journal"])
    each_second = max(shares[name] for name in EACH_SECOND)
    guards = shares["guard"] + shares["digest"]
    return int(guards > MOST_OF_GUARD_AND_DIGEST or each_step > MOST_OF_OTHERS or each_second > MOST_OF_A_SECOND)


if __name__ == "__main__":
    sys.exit(main())
