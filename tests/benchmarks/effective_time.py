"""What share of 34 days is left for steps that count, on 4 to 16,384 GPUs?

    python tests/benchmarks/effective_time.py [--restart SECONDS] [--step SECONDS] [--seed N] [--json FILE]

A simulation: the machine fails at random moments (exponentially, by published rates), what was done since the newest checkpoint is lost, and
training is back after a restart, in which it may fail again. What a save holds the training up for, and how long it takes to be on the
disk, are those measured for 1.49 GB a rank (results/checkpoint_stall.json, two cores, no GPU), and so is a restart (results/
month_of_faults.json, a small model on one machine). That a rank's share, a restart and a write stay the same on thousands of GPUs is an
assumption; --restart 600 shows what a slow one does. Every failure takes the machine's memory with it: nothing is rescued from snapshots.

Intervals: the trainer's own, as its schedule finds it from these costs; the best ones by Young (1974) and Daly (2006, higher order); and the
defaults of others, whose saves that hold the training up cost what `save_state` did in the same measurement. Ends with 1 where the
trainer's own interval leaves more than half a point less than Young's.
"""

import argparse
import json
import math
import random
import statistics
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))
from trainer.checkpoint.save.schedule import Budget, Costs, plan  # noqa: E402
from trainer.text import duration, table  # noqa: E402

RESULTS = PROJECT / "tests" / "benchmarks" / "results"
DAYS, RUNS, MOST_BEHIND = 34, 200, 0.005
HOUR, DAY = 3600.0, 86400.0

MTTF_HOURS = {
    "Meta's research clusters": {16384: 1.8, 1024: 7.9, 64: 7.9 * 1024 / 64, 4: 7.9 * 1024 / 4},
    "Llama 3": {gpus: 54 * 24 / 419 * 16384 / gpus for gpus in (16384, 1024, 64, 4)},
    "one stop a day": {64: 24.0, 4: 24.0},
}
"""Hours between failures by the number of GPUs. source: Kokolis et al. 2024, "Revisiting Reliability in Large-Scale Machine Learning Research
Clusters" (7.9 h at 1,024 GPUs and 1.8 h at 16,384; fewer in proportion); The Llama 3 Herd of Models, 2024 (419 unplanned interruptions
in 54 days on 16,384 GPUs; others in proportion). The last is no failure rate: what ends small runs is preemption, reboots, edits."""


@dataclass(frozen=True)
class Way:
    """When somebody saves, and what that costs; seconds."""

    interval: float
    stall: float
    write: float
    """From the snapshot to the disk; 0 where the training waits for it."""


@dataclass(frozen=True)
class Other:
    """What another trainer does unless it is told otherwise."""

    waits: bool
    source: str
    steps: int | None = None
    seconds: float | None = None


OTHERS = {
    "transformers Trainer": Other(True, "transformers 5.23.0, training_args.py: save_steps 500", steps=500),
    "torchtitan": Other(
        True, "pytorch/torchtitan 000204a, job_config.py: interval 500, async_mode disabled", steps=500
    ),
    "LitGPT": Other(True, "Lightning-AI/litgpt 9538d6a, args.py: save_interval 1000", steps=1000),
    "OLMo-core": Other(False, "allenai/OLMo-core 0789479, checkpointer.py: save_interval 250, asynchronous", steps=250),
    "Levanter": Other(
        False, "stanford-crfm/levanter, checkpoint.py: save_interval 15 minutes, asynchronous", seconds=900.0
    ),
}


def young(stall: float, mttf: float) -> float:
    """The interval that loses least, to first order."""
    return math.sqrt(2 * stall * mttf)


def daly(stall: float, mttf: float) -> float:
    """The same to higher order (2006); at most the time between failures."""
    if stall >= 2 * mttf:
        return mttf
    ratio = stall / (2 * mttf)
    return math.sqrt(2 * stall * mttf) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - stall


def effective(way: Way, mttf: float, restart: float, seconds: float, chance: random.Random) -> float:
    """The share of the time that went into steps which count, in one run."""
    now = kept = 0.0
    while now < seconds:
        life = chance.expovariate(1 / mttf)  # until the next failure, restart included
        up = min(life, seconds - now) - (restart if now else 0.0)
        now += life
        if up <= 0:
            continue
        period = way.interval + way.stall
        if now < seconds:
            kept += way.interval * max(0, math.floor((up - way.write) / period))
        else:  # nothing of the last stretch is lost: the run ends with a save
            kept += up * way.interval / period
    return kept / seconds


def ways(costs: Mapping[str, float], mttf: float, step: float) -> dict[str, Way]:
    """Everybody's, for these costs."""
    stall, write = costs["stall"], costs["write"]
    own = plan(Budget(), Costs(stall, write, costs["writer_cpu"], step)).write_interval_seconds
    found = {
        "this trainer": Way(max(own, step), stall, write),
        "Young": Way(max(young(stall, mttf), step), stall, write),
        "Daly": Way(max(daly(stall, mttf), step), stall, write),
    }
    for name, other in OTHERS.items():
        interval = other.seconds if other.steps is None else other.steps * step
        assert interval is not None, "one of the two is given"
        found[name] = Way(interval, costs["save_state"], 0.0) if other.waits else Way(interval, stall, write)
    return found


def simulate(costs: Mapping[str, float], *, restart: float, step: float, seed: int) -> list[dict[str, Any]]:
    """A row for each rate, number of GPUs and way; every way meets the same failures."""
    rows = []
    for rate, by_gpus in MTTF_HOURS.items():
        for gpus, hours in sorted(by_gpus.items()):
            for name, way in ways(costs, hours * HOUR, step).items():
                shares = [
                    effective(way, hours * HOUR, restart, DAYS * DAY, random.Random(f"{seed} {rate} {gpus} {run}"))
                    for run in range(RUNS)
                ]
                mean, spread = statistics.mean(shares), statistics.stdev(shares)
                rows.append(
                    {
                        "rate": rate,
                        "gpus": gpus,
                        "mttf_hours": hours,
                        "way": name,
                        **asdict(way),
                        "effective": mean,
                        "stdev": spread,
                    }
                )
    return rows


def shown(rows: list[dict[str, Any]]) -> str:
    """A line for each rate and number of GPUs."""
    names = list(dict.fromkeys(row["way"] for row in rows))
    lines: dict[tuple[str, int], list[str]] = {}
    for row in rows:
        start = [row["rate"], f"{row['gpus']:,}", duration(row["mttf_hours"] * HOUR)]
        lines.setdefault((row["rate"], row["gpus"]), start).append(f"{row['effective']:.2%}")
    return table([("rate", "GPUs", "a failure in", *names), *lines.values()], indent="")


def main() -> int:
    measured = json.loads((RESULTS / "checkpoint_stall.json").read_text(encoding="utf-8"))["medians"]
    month = json.loads((RESULTS / "month_of_faults.json").read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--restart", type=float, default=month["restart_seconds"])
    parser.add_argument("--step", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    costs = {name: measured[name] for name in ("stall", "write", "writer_cpu", "save_state", "bytes")}
    rows = simulate(costs, restart=arguments.restart, step=arguments.step, seed=arguments.seed)
    print(f"{DAYS} days, {RUNS} runs each, steps of {arguments.step:g} s, a restart of {arguments.restart:.3g} s\n")
    print(shown(rows))
    of = {(row["rate"], row["gpus"], row["way"]): row["effective"] for row in rows}
    behind = max(of[rate, gpus, "Young"] - share for (rate, gpus, way), share in of.items() if way == "this trainer")
    print(f"\nat most {100 * behind:.2f} points behind Young's interval; {100 * MOST_BEHIND:g} are allowed")
    if arguments.json:
        facts = {
            "days": DAYS,
            "runs": RUNS,
            "seed": arguments.seed,
            "step_seconds": arguments.step,
            "restart_seconds": arguments.restart,
            "costs": costs,
            "measured_on": {"costs": "results/checkpoint_stall.json", "restart": "results/month_of_faults.json"},
            "others": {name: other.source for name, other in OTHERS.items()},
            "rows": rows,
            "points_behind_young": 100 * behind,
        }
        arguments.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return int(behind > MOST_BEHIND)


if __name__ == "__main__":
    sys.exit(main())
