"""What only a GPU can show, measured by parts: tests/gpu/run [--list] [PART ... | all]

Each part writes gpu_PART.json into a folder as it goes, goes on there when it was cut off, and holds what it finds against a bar. Several
parts run each in a process of its own, so that one that fails hides nothing of the others. Exit code 1: a bar was not held.
"""

import argparse
import contextlib
import importlib
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from tests.gpu.record import RESULTS, Record, file_of, is_held, read
from tests.gpu.runs import Scene
from tests.gpu.table import checks_table, passage
from tests.launching import PROJECT


class Part(NamedTuple):
    """A module here of the same name, with `measure(scene, record)`."""

    minutes: float
    """An estimate for an H100; nobody has measured it."""
    help: str


PARTS = {
    "first": Part(
        9,
        "what is shipped, GPT-2 124M at 1,024 tokens: exact, how fast, waiting for what; a miss names what it points to",
    ),
    "probe": Part(1, "the machine, and what is decided for each recipe"),
    "share": Part(4, "share of the arithmetic that ran in fp8, GPT-2 and Llama, each recipe"),
    "resume": Part(6, "killed with SIGKILL and resumed: bit-identical; the price of deterministic: true"),
    "switch": Part(4, "fp8 -> bf16 -> fp8 in one run by its cluster file"),
    "gap": Part(7, "loss after 300 steps of the same data against bf16's, three seeds"),
    "speed": Part(6, "linear layers and whole steps at widths 768, 1600, 2048 and 4096, beside bf16 and compiled bf16"),
    "stall": Part(3, "what a checkpoint costs the training thread"),
    "suite": Part(5, "pytest tests/gpu"),
}

PATIENCE = 3.0
"""A part that takes so many times its minutes is ended."""

NO_GPU = (
    "error: tests/gpu/run measures what only a GPU can show (real fp8, its speed, exact resumes with cuBLAS), and torch finds no CUDA device here. "
    "Run it on a machine with one, a Hopper for the figures of trainer/guides/precision.md (tests/gpu/README.md says what a bare machine needs); --list names the "
    "parts; --emulate PART goes through the same code on this CPU with a tiny model and an emulation of fp8, which measures nothing"
)


def main(words: list[str] | None = None) -> int:
    """The exit code: 0 when every bar was held, 1 when one was not, 2 for a mistake or without a GPU."""
    wanted = parse(words)
    if wanted.list:
        for name, part in PARTS.items():
            print(f"{name:8} about {part.minutes:g} min  {part.help}")
        return 0
    if wanted.table:
        print(passage(wanted.out or RESULTS, list(PARTS)))
        return 0
    if not wanted.emulate and not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr)
        return 2
    names = list(PARTS) if "all" in wanted.parts else wanted.parts
    out = wanted.out or (Path(tempfile.mkdtemp(prefix="gpu-emulated-")) if wanted.emulate else RESULTS)
    if len(names) == 1:
        return _measure(names[0], out, wanted)
    for name in names:
        _measure_apart(name, out, wanted)
    found = {name: read(file_of(out, name)) for name in names}
    print(f"\n{checks_table(found)}\n\nin {out}")
    return 0 if all(part and part["complete"] and is_held(part["checks"]) for part in found.values()) else 1


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """What was typed; ends with 2 where that makes no sense."""
    parser = argparse.ArgumentParser(prog="tests/gpu/run", description="Measures what only a GPU can show.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}, or all")
    parser.add_argument("--list", action="store_true", help="names the parts and about how long each takes")
    parser.add_argument("--out", type=Path, help=f"folder for the results (default: {RESULTS.relative_to(PROJECT)})")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path(tempfile.gettempdir()) / "gpu-run",
        help="folder for the runs that are measured",
    )
    parser.add_argument("--fresh", action="store_true", help="measures again what was measured before")
    parser.add_argument("--emulate", action="store_true", help="goes through the code on a CPU; measures nothing")
    parser.add_argument(
        "--table", action="store_true", help="prints the passage of trainer/guides/precision.md for the results"
    )
    wanted = parser.parse_args(words)
    wanted.out, wanted.work = wanted.out and wanted.out.resolve(), wanted.work.resolve()
    if unknown := [part for part in wanted.parts if part not in (*PARTS, "all")]:
        parser.error(f"{unknown[0]!r} is not a part; they are {', '.join(PARTS)}, and all")
    if not (wanted.parts or wanted.list or wanted.table):
        parser.error("name a part, or all; --list tells them")
    if wanted.emulate and wanted.out == RESULTS:
        parser.error(
            "--out: an emulation is no result, and is not written to tests/benchmarks/results; give another folder"
        )
    return wanted


def _measure(name: str, out: Path, wanted: argparse.Namespace) -> int:
    """One part, in this process."""
    if wanted.emulate:
        from tests import emulation

        emulation.install()
        print("emulated on a CPU: nothing here is fp8, and nothing is a measurement")
    record = Record(file_of(out, name), name, emulated=wanted.emulate, fresh=wanted.fresh)
    about = {**record.facts["hardware"], **record.facts["versions"]}
    print(f"{name}: {', '.join(f'{what} {value}' for what, value in about.items())}", flush=True)
    importlib.import_module(f"tests.gpu.{name}").measure(Scene(wanted.emulate, wanted.work / name), record)
    held = record.finish()
    print(
        f"{name}: {'every bar was held' if held else 'NOT every bar was held'}, {record.seconds:.0f} s, {record.path}",
        flush=True,
    )
    return 0 if held else 1


def _measure_apart(name: str, out: Path, wanted: argparse.Namespace) -> None:
    """One part in a process of its own, which is ended with all that it has started when it takes too long or this one is ended."""
    flags = [f"--{flag}" for flag in ("fresh", "emulate") if getattr(wanted, flag)]
    process = psutil.Popen(
        [sys.executable, "-m", "tests.gpu", name, "--out", str(out), "--work", str(wanted.work), *flags]
    )
    try:
        process.wait(PATIENCE * 60 * PARTS[name].minutes)
    except psutil.TimeoutExpired:
        print(f"{name}: ended after {PATIENCE * PARTS[name].minutes:g} minutes", flush=True)
    finally:
        if process.is_running():
            kill_all([*process.children(recursive=True), process])
            process.wait()


def kill_all(processes: list[psutil.Process]) -> None:
    """SIGKILL to each that is still there."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def end(*_: object) -> None:
    """Ends this process with all that it has started: a run that outlived it would take the GPU from the next."""
    kill_all(psutil.Process().children(recursive=True))
    os._exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, end)
    sys.exit(main())
