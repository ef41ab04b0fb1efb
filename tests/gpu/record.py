"""What a part found, in a JSON file that is written anew after every piece, so that a part that was cut off goes on where it was.

A piece is believed again only where hardware, versions and sources are those it was measured with.
"""

import hashlib
import json
import os
import platform
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from tests.launching import PROJECT
from trainer import files
from trainer.text import one_line

RESULTS = PROJECT / "tests" / "benchmarks" / "results"
SHARED_SOURCES = (
    "trainer/**/*.py",
    "tests/launching.py",
    "tests/benchmarks/checkpoint_stall.py",
    "tests/gpu/runs.py",
    "tests/gpu/witness.py",
    "tests/gpu/syncs.py",
)

Work = Callable[[], dict[str, Any]]


class Record:
    """The pieces and the checks of one part."""

    def __init__(self, path: Path, part: str, *, emulated: bool, fresh: bool = False) -> None:
        """Begins with what stands in `path`, or else among the stored results, unless it is to be `fresh`."""
        self.path = path
        self.facts = {
            "part": part,
            "emulated": emulated,
            "hardware": hardware(emulated),
            "versions": versions(),
            "sources": sources(part),
        }
        self.pieces: dict[str, Any] = {}
        self.checks: list[dict[str, Any]] = []
        self.seconds = 0.0
        self._lock = threading.RLock()
        before = None if fresh else read(path) or read(file_of(RESULTS, part))
        if before and all(before.get(name) == value for name, value in self.facts.items()):
            self.pieces, self.seconds = before["pieces"], before["seconds"]
        self._write(complete=False)

    def piece(self, name: str, work: Work) -> dict[str, Any] | None:
        """What `work` finds, or has found before; None, and a check that is not held, where it fails.

        It works in this thread: torch keeps autocast, and its compiler much else, by thread.
        """
        started = time.perf_counter()
        found = self._find(name, work)
        self.seconds += time.perf_counter() - started
        return found

    def side_by_side(self, works: Mapping[str, Work], at_once: int) -> dict[str, dict[str, Any] | None]:
        """What each finds, by name, so many at once: runs in processes of their own, most of whose time is not the GPU's."""
        started = time.perf_counter()
        with ThreadPoolExecutor(at_once) as pool:
            found = dict(zip(works, pool.map(self._find, works, works.values()), strict=True))
        self.seconds += time.perf_counter() - started
        return found

    def _find(self, name: str, work: Work) -> dict[str, Any] | None:
        if name in self.pieces:
            print(f"  {name}: measured before", flush=True)
            return self.pieces[name]
        try:
            found = work()
        except (
            Exception
        ) as error:  # whatever fails is a finding about this piece, and the others are measured all the same
            print(f"  {name}: {error}", flush=True)
            self.check(f"{name} can be measured", one_line(error), "no error", held=False)
            return None
        with self._lock:
            self.pieces[name] = found
            self._write(complete=False)
        print(f"  {name}: {_brief(found)}", flush=True)
        return found

    def check(self, name: str, value: Any, bar: str, *, held: bool) -> None:
        """Notes a figure beside what it should be, and prints both."""
        print(f"{'ok  ' if held else 'MISS'}  {name}: {_brief(value)} ({bar})", flush=True)
        with self._lock:
            self.checks.append({"name": name, "value": value, "bar": bar, "held": bool(held)})
            self._write(complete=False)

    def finish(self) -> bool:
        """Whether every check was held, and there was one."""
        self._write(complete=True)
        return is_held(self.checks)

    def _write(self, *, complete: bool) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = {
            **self.facts,
            "complete": complete,
            "seconds": round(self.seconds, 1),
            "checks": self.checks,
            "pieces": self.pieces,
        }
        files.write_atomic(self.path, json.dumps(whole, indent=1) + "\n")


def is_held(checks: list[dict[str, Any]]) -> bool:
    """Whether there are checks and all of them were held."""
    return bool(checks) and all(check["held"] for check in checks)


def read(path: Path) -> dict[str, Any] | None:
    """A part's file; None where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def file_of(folder: Path, part: str) -> Path:
    """Where a part's findings are."""
    return folder / f"gpu_{part}.json"


def hardware(emulated: bool) -> dict[str, Any]:
    """The machine; an emulation is called that and nothing else."""
    cores = os.cpu_count()
    if emulated:
        return {"device": "CPU, fp8 emulated", "cores": cores}
    about = torch.cuda.get_device_properties(0)
    capability = f"{about.major}.{about.minor}"
    return {
        "device": about.name,
        "capability": capability,
        "memory_bytes": about.total_memory,
        "driver": _driver(),
        "cores": cores,
    }


def _driver() -> str:
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def versions() -> dict[str, str | None]:
    """What the figures may depend on, by name; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for package in ("torch", "accelerate", "transformers", "transformer_engine"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def sources(part: str) -> str:
    """A digest of the code that is measured, and of what measures it in this part."""
    digest = hashlib.sha256()
    for path in sorted(
        {path for pattern in (*SHARED_SOURCES, f"tests/gpu/{part}.py") for path in PROJECT.glob(pattern)}
    ):
        digest.update(str(path.relative_to(PROJECT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _brief(value: Any) -> str:
    """A value as one short line."""
    if isinstance(value, dict):
        return ", ".join(
            f"{name} {_brief(inner)}" for name, inner in value.items() if not isinstance(inner, (dict, list))
        )
    return f"{value:.4g}" if isinstance(value, float) else str(value)
