"""How threads that share a computation wait for each other: what a launch sets in the environment of the trainer and its ranks.

Threads of OpenMP spin while they wait. On a quiet machine that is the fastest way; beside other work, which takes a core from one of
them now and then, the others spin in vain and a step takes ten to a hundred times as long. A bound on the spinning costs little on the quiet
machine and keeps most of a fair share on the busy one: `tests/benchmarks/contention.py` measures both.
"""

from collections.abc import Mapping
from pathlib import Path

SPINS, SPINS_WITH_AVX512 = 3000, 400
"""Turns of its loop after which a waiting thread of GNU's OpenMP, which torch brings along, sleeps.

The second, where processors multiply twice as fast and so wait for less time. On the one kind 1,000 turns cost more than 4 % of a quiet
step, on the other 700 leave less than 45 % of the speed beside one busy process (tests/benchmarks/results/contention*.json).
"""

CHOSEN_BY = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""Where a person has set one of these, it is left alone."""


def waiting(environment: Mapping[str, str], processor: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """What to add to this environment on the machine whose `processor` the kernel describes in this file."""
    if any(name in environment for name in CHOSEN_BY):
        return {}
    return {"GOMP_SPINCOUNT": str(SPINS_WITH_AVX512 if "avx512f" in _instructions(processor) else SPINS)}


def _instructions(processor: Path) -> set[str]:
    """What the first core can do; nothing where the kernel does not say it."""
    try:
        with processor.open(encoding="utf-8") as lines:
            return next((set(line.split()) for line in lines if line.startswith("flags")), set())
    except OSError:
        return set()
