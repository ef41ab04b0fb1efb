"""What a machine shows when a run on it is slow: who else computes, and what holds its processors down.

Counters are read twice, some seconds apart, and their difference is reported. What a system does not count is left out.
"""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from trainer.text import size

LOOK_SECONDS = 3.0
"""How long the machine is watched."""

NOTABLE_CORES, NOTABLE_FRACTION = 0.2, 0.05
"""Less of other processes' work, or a smaller share of the time, is not reported as a reason."""

CGROUP = Path("/sys/fs/cgroup/cpu.stat")
SYSTEM = Path("/sys")
_THROTTLES = "devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count"


@dataclass(frozen=True)
class Counters:
    """What the machine has counted by one moment."""

    at: float
    """Seconds of a clock."""
    num_cores: int
    steal_seconds: float = 0.0
    """Processor time that the hypervisor gave to others."""
    processes: Mapping[int, tuple[str, float]] = field(default_factory=dict)
    """Name and CPU seconds by process id."""
    own: frozenset[int] = frozenset()
    """Process ids of this run."""
    throttled_seconds: float = 0.0
    """Time for which a container's quota held its processes."""
    heat_events: int = 0
    """How often a core was slowed down for heat."""
    swapped_bytes: int = 0
    """Memory moved from and to the swap."""


def look(own_root: int) -> Counters:
    """The counters now; `own_root` is the process id of this run's launcher, whose descendants are the run's."""
    processes, parents = {}, {}
    for process in psutil.process_iter():
        try:
            with process.oneshot():
                times = process.cpu_times()
                processes[process.pid] = (process.name(), times.user + times.system)
                parents[process.pid] = process.ppid()
        except psutil.Error:
            continue  # it ended while we looked, or is not ours to look at
    swap = psutil.swap_memory()
    return Counters(
        at=time.monotonic(),
        num_cores=psutil.cpu_count() or 1,
        steal_seconds=getattr(psutil.cpu_times(), "steal", 0.0),
        processes=processes,
        own=frozenset(pid for pid in processes if descends(pid, own_root, parents)),
        throttled_seconds=_throttled_seconds(),
        heat_events=_heat_events(),
        swapped_bytes=swap.sin + swap.sout,
    )


def descends(pid: int, root: int, parents: Mapping[int, int]) -> bool:
    """Whether a process is `root` or was started by it or by one that was."""
    seen = set()
    while pid not in seen:
        if pid == root:
            return True
        seen.add(pid)
        pid = parents.get(pid, 0)
    return False


def reasons(before: Counters, after: Counters, gpus: Mapping[str, float] | None = None) -> list[str]:
    """What may make a run slow, each as a clause; none where nothing shows.

    gpus   the newest values of metrics/hardware.py by tag
    """
    seconds = max(after.at - before.at, 1e-9)
    stolen = (after.steal_seconds - before.steal_seconds) / seconds / after.num_cores
    throttled = (after.throttled_seconds - before.throttled_seconds) / seconds
    swapped = (after.swapped_bytes - before.swapped_bytes) / seconds
    found = [
        _others(before, after, seconds),
        _share("the hypervisor gave {:.0%} of the processor time to other machines (steal)", stolen),
        _share("the CPU quota of this container held it {:.0%} of the time", throttled),
        "processors are slowed down for heat" if after.heat_events > before.heat_events else None,
        f"memory is swapped ({size(swapped)}/s)" if swapped > 0 else None,
    ]
    return [reason for reason in (*found, *_slowed_gpus(gpus or {})) if reason]


def _others(before: Counters, after: Counters, seconds: float) -> str | None:
    """The CPU time of processes that are not this run's."""
    cores: dict[str, float] = {}
    for pid, (name, spent) in after.processes.items():
        if pid in after.own:
            continue
        known, earlier = before.processes.get(pid, (name, 0.0))
        added = max(0.0, spent - (earlier if known == name else 0.0)) / seconds
        cores[name] = cores.get(name, 0.0) + added
    total = sum(cores.values())
    if total < NOTABLE_CORES:
        return None
    most = sorted(cores.items(), key=lambda item: item[1], reverse=True)[:3]
    named = ", ".join(f"{name} {share:.1f}" for name, share in most if share >= NOTABLE_CORES / 2)
    return f"other processes take {total:.1f} of {after.num_cores} cores ({named})"


def _share(words: str, share: float) -> str | None:
    return words.format(min(share, 1.0)) if share >= NOTABLE_FRACTION else None


def _slowed_gpus(gpus: Mapping[str, float]) -> list[str]:
    found = []
    for tag, value in sorted(gpus.items()):
        if value and (match := re.fullmatch(r"gpu/slowed_by_(heat|power)/(\d+)", tag)):
            clock = gpus.get(f"gpu/sm_clock_hertz/{match[2]}")
            to = f" ({clock / 1e6:.0f} MHz)" if clock else ""
            found.append(f"{match[1]} holds the clock of GPU {match[2]} down{to}")
    return found


def _throttled_seconds() -> float:
    try:
        match = re.search(r"^throttled_usec (\d+)", CGROUP.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return 0.0
    return int(match[1]) / 1e6 if match else 0.0


def _heat_events() -> int:
    """Of all cores together; 0 where the system does not count them."""
    total = 0
    for path in SYSTEM.glob(_THROTTLES):
        try:
            total += int(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
    return total
