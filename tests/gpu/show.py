"""The command line of tests/gpu/run: which parts, where their results go, and what they came to."""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests import emulation
from tests.gpu import speed, stage, training
from tests.gpu.shown import RESULTS, Bar, Shown, passage
from tests.gpu.stage import EMULATED, REAL, Stage
from tests.launching import PROJECT
from trainer.precision.recipes import RECIPES
from trainer.text import duration, table


class Part(NamedTuple):
    """One thing to show."""

    play: Callable[[Stage], Shown]
    minutes: float
    """About how long it takes on an H100."""
    what: str


def probe(played: Stage) -> Shown:
    """What is decided for each recipe on this machine, for a model and a batch that fit."""
    decisions = {name: played.decision(name, played.run_size) for name in RECIPES}
    bars = [
        Bar(name, decision.sentence, "fp8" if name in training.HOPPER else "none", passed=name not in training.HOPPER or decision.mode == "fp8")
        for name, decision in decisions.items()
    ]
    return Shown("probe", bars, {name: decision.as_json() for name, decision in decisions.items()})


def stall(played: Stage) -> Shown:
    """tests/benchmarks/checkpoint_stall.py on the GPU: 60 saves between updates of a model of 124 million parameters."""
    if played.emulated:
        return Shown("stall", [Bar("stalls of saves", "not tried: the benchmark itself runs on a CPU without --cuda", "none")])
    with stage.scratch() as folder:
        result = folder / "stall.json"
        command = [sys.executable, "tests/benchmarks/checkpoint_stall.py", "60", "--cuda", "--json", str(result)]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
        facts = json.loads(result.read_text()) if result.is_file() else {}
    bars = [Bar(what, f"{value:.4g}", "p50 <= 0.020 s, p99 <= 0.300 s") for what, value in facts.get("checks", {}).items()]
    said = (done.stdout + done.stderr).strip().split("\n")[-1]
    bars.append(Bar("the benchmark's own verdict", said or "nothing printed", "exit code 0", passed=done.returncode == 0 and bool(facts)))
    return Shown("stall", bars, facts)


def gpu_tests(played: Stage) -> Shown:
    """pytest over tests/gpu."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    said = (done.stdout.strip().split("\n") or [""])[-1]
    passed = done.returncode == 0 and (played.emulated or " skipped" not in said)
    return Shown("tests", [Bar("pytest tests/gpu", said, "all pass, none skipped", passed=passed)], {"output": done.stdout[-4000:]})


PARTS = {
    "probe": Part(probe, 0.5, "what is decided for each recipe, and by how much a small layer differs from fp32"),
    "share": Part(training.share, 1.5, "the share of the arithmetic that is in fp8, for each recipe"),
    "switch": Part(training.switch, 1.5, "fp8 -> bf16 -> fp8 in one run; checkpoints and export"),
    "resume": Part(training.resume, 4, "killed and resumed under fp8: the same bits? what does deterministic cost?"),
    "gap": Part(training.gap, 8, "the loss after 300 steps against bf16's, over three seeds"),
    "speed": Part(speed.speed, 6, "block linears and whole steps at widths 768, 1600, 2048 and 4096"),
    "stall": Part(stall, 2, "what a checkpoint holds training for"),
    "tests": Part(gpu_tests, 3, "pytest tests/gpu"),
}


def main(words: list[str] | None = None) -> int:
    """Plays the parts; returns 1 when a bar was missed or a part failed, 2 for a mistake."""
    parser = argparse.ArgumentParser(prog="tests/gpu/run", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all without any")
    parser.add_argument("--list", action="store_true", help="what there is, and about how long each takes")
    parser.add_argument("--table", action="store_true", help="README's passage, of the results that are there")
    parser.add_argument("--emulate", action="store_true", help="on a CPU with the tests' emulation of fp8: tries the script, shows nothing")
    parser.add_argument("--out", type=Path, help=f"folder of the results (default: {RESULTS.relative_to(PROJECT)})")
    asked = parser.parse_args(words)
    if asked.list:
        print(table([("part", "minutes", "what"), *((name, part.minutes, part.what) for name, part in PARTS.items())]))
        return 0
    if asked.table:
        print(passage(asked.out or RESULTS, list(PARTS)))
        return 0
    if unknown := [name for name in asked.parts if name not in PARTS]:
        parser.error(f"no part is called {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if asked.emulate and asked.out is None:
        parser.error("--emulate needs --out FOLDER: an emulation is no result, and has no place among them")
    if not asked.emulate and (why := stage.missing()):
        print(f"error: {why}", file=sys.stderr)
        return 2
    parts, out = asked.parts or list(PARTS), asked.out or RESULTS
    return _one(parts[0], asked.emulate, out) if len(parts) == 1 else _all(parts, asked.emulate, out)


def _one(part: str, emulated: bool, out: Path) -> int:
    """Plays a part in this process."""
    if emulated:
        emulation.install()
    began = time.monotonic()
    shown = PARTS[part].play(EMULATED if emulated else REAL)
    path = shown.write(out, emulated=emulated, seconds=time.monotonic() - began)
    print(f"{shown.text()}\n{duration(time.monotonic() - began)}, {path}", flush=True)
    return 0 if shown.passed else 1


def _all(parts: list[str], emulated: bool, out: Path) -> int:
    """Plays each part in a process of its own, so that one that dies hides no other."""
    codes = {}
    for part in parts:
        print(f"== {part}: {PARTS[part].what}", flush=True)
        command = [sys.executable, "-m", "tests.gpu.show", part, "--out", str(out), *(["--emulate"] if emulated else [])]
        codes[part] = subprocess.run(command, cwd=PROJECT, check=False).returncode
    said = {0: "shown", 1: "NOT shown"}
    print(table([("part", "came to"), *((part, said.get(code, f"died with exit code {code}")) for part, code in codes.items())]))
    return int(any(codes.values()))


if __name__ == "__main__":
    sys.exit(main())
