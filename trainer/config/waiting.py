"""How threads that share a computation wait for each other: what a launch sets in the environment of the trainer and its ranks.

Threads of OpenMP spin while they wait. On a quiet machine that is the fastest way; beside other work, which takes a core from one of
them now and then, the others spin in vain and a step takes ten to a hundred times as long. A bound on the spinning costs little on the quiet
machine and keeps most of a fair share on the busy one: `tests/benchmarks/contention.py` measures both.
"""

from collections.abc import Mapping

WAITING = {"GOMP_SPINCOUNT": "3000"}
"""For GNU's OpenMP, which torch brings along: the number of turns of its loop after which a waiting thread sleeps."""

CHOSEN_BY = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""Where a person has set one of these, it is left alone."""


def waiting(environment: Mapping[str, str]) -> dict[str, str]:
    """What to add to this environment."""
    return {} if any(name in environment for name in CHOSEN_BY) else dict(WAITING)
