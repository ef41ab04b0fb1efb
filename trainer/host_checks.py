"""What a machine must have for a long run beside its GPUs, each as a line: clock, shared memory, limits. Nothing of torch is needed for it."""

import os
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from trainer.text import size

CLOCK_SECONDS = 5.0
"""So far may two clocks be apart."""

SHARED_BYTES = 1 << 30
"""What NCCL's own guide asks for; a container has 64 MB unless it is told otherwise."""

OPEN_FILES = 1024
LOCKED_BYTES = 64 << 20

_SHARED = Path("/dev/shm")


@dataclass(frozen=True)
class HostCheck:
    """One thing that was looked at."""

    name: str
    value: str
    expected: str
    remedy: str
    is_fine: bool

    @property
    def words(self) -> str:
        """`name: value`, and where it is not fine what was expected and what to do."""
        return f"{self.name}: {self.value}" + ("" if self.is_fine else f", expected {self.expected}; {self.remedy}")


def host_checks(folder: Path, *, pins_memory: bool) -> list[HostCheck]:
    """All of them.

    folder       an existing one on the file system that is written to
    pins_memory  whether memory is locked for transfers, as with GPUs
    """
    return [_clock(folder), _shared_memory(), _open_files(), _locked_memory(pins_memory)]


def wall_clock() -> float:
    """What this machine's clock says, to hold against another's."""
    return time.time()


def clock_check(name: str, seconds: float) -> HostCheck:
    """Whether two clocks that differ by so much agree."""
    remedy = "set both by the same time server (chrony, systemd-timesyncd): what is newest is told by the clock"
    is_fine = abs(seconds) <= CLOCK_SECONDS
    return HostCheck(name, f"{abs(seconds):.1f} s apart", f"at most {CLOCK_SECONDS:g} s", remedy, is_fine)


def _clock(folder: Path) -> HostCheck:
    """This machine's clock and the one by which the file system dates its files, which may be a server's."""
    name = "clock against the file system's"
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            before = time.time()
            file.write(b"?")
            file.flush()
            dated = os.fstat(file.fileno()).st_mtime
            after = time.time()
    except OSError as error:
        remedy = "fix that, or set runs_folder to another place"
        return HostCheck(name, f"not known ({folder}: {error.strerror})", "a folder that can be written", remedy, False)
    return clock_check(name, dated - min(max(dated, before), after))


def _shared_memory() -> HostCheck:
    remedy = "start the container with --ipc=host or --shm-size=8g, or mount a larger /dev/shm"
    try:
        there = os.statvfs(_SHARED)
    except OSError as error:
        return HostCheck("shared memory", f"none ({error.strerror})", size(SHARED_BYTES), remedy, False)
    free = there.f_bavail * there.f_frsize
    return HostCheck(
        "shared memory", f"{size(free)} free", f"{size(SHARED_BYTES)} at least", remedy, free >= SHARED_BYTES
    )


def _open_files() -> HostCheck:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    is_fine = limit == resource.RLIM_INFINITY or limit >= OPEN_FILES
    value = "unlimited" if limit == resource.RLIM_INFINITY else str(limit)
    return HostCheck(
        "open files (ulimit -n)", value, f"{OPEN_FILES} at least", "ulimit -n 65536 before the start", is_fine
    )


def _locked_memory(pins_memory: bool) -> HostCheck:
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    is_endless = limit == resource.RLIM_INFINITY
    expected = f"{size(LOCKED_BYTES)} at least" if pins_memory else "nothing, without GPUs"
    return HostCheck(
        "locked memory (ulimit -l)",
        "unlimited" if is_endless else size(limit),
        expected,
        "ulimit -l unlimited before the start (in a container --ulimit memlock=-1): NCCL locks memory for InfiniBand",
        is_endless or not pins_memory or limit >= LOCKED_BYTES,
    )


def machine_bytes() -> int:
    """Bytes of memory that this machine has, swap included, or a container's limit where that is less."""
    there = psutil.virtual_memory().total + psutil.swap_memory().total
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            there = min(there, int(Path("/sys/fs/cgroup", limit).read_text(encoding="ascii")))
        except (OSError, ValueError):
            continue  # no such limit here, or the word `max`
    return there
