"""A month of faults in minutes: a run of two ranks under its supervisor, to which everything happens, and which ends as if nothing had.

    python -m tests.chaos.month --faults 60 --seed 1 --json tests/benchmarks/results/month_of_faults.json

Starts `trainer launch` as a service would, and starts it again where the process itself was killed (`supervisor`, `tree`), as systemd would;
everything else the supervisor has to answer. The faults come one after another, each at a random step after the one before is over. Ends
with 1 where the run

    has to be started again for another reason, or does not finish by itself
    has other final weights or moments than a straight run that is told to skip the batches that this one has skipped, and to step over the
    data that it has diverged on
    says of a replay that it was not exact, or refuses a checkpoint

How much of the wall time was effective stands beside what Young's and Daly's formulas give for so many faults and such costs.
"""

import argparse
import json
import math
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from tests.chaos.planted import BAD, FOLDER, FULL, HANGS, RAISE, SHARD, SPOIL, STRETCH_STEPS, TOLD, read, write_whole
from tests.launching import Started, environment, final_bytes, outcome, steps, write_cluster, write_recipe, write_shards
from trainer import start
from trainer.journal import read_events
from trainer.metrics.curves import CURVE

SETTINGS: dict[str, Any] = {
    "global_batch": 16,
    "micro_batch": 8,
    "checkpoint": {"max_lost_work_seconds": 1.0, "max_overhead_fraction": 0.5, "every_steps": None, "keep_last": 3},
    "metrics": {"trackers": [], "console_every_steps": 50},
    "evaluation": {"every_steps": 100, "sample_tokens": 0},
    "safety": {"spike": {"skip": True, "window": 32, "min_history": 16}, "max_bad_steps": STRETCH_STEPS - 2},
    "hang": {"min_seconds": 6.0, "first_seconds": 12.0},
    "plugins": ["tests.chaos.plugin"],
    "restart": {"enabled": True, "max": 10_000},
}
"""A commit about every second, limits in seconds instead of minutes."""

INTERRUPTING = ("rank", "launcher", "supervisor", "tree", "memory", "exception", "stopped", SHARD)
KINDS = (*INTERRUPTING, "writer", "nan_batch", "spike_batch", "full_disk", "hanging_disk", "clock")

PATIENCE_SECONDS = 120.0
"""How long the run may take to go on after a fault."""
HANG_SECONDS = 3 * SETTINGS["hang"]["first_seconds"]
"""How long a rank stands still before it is let go on and stopped anew: where the others evaluate or save, half an hour is the limit."""


class Service:
    """`trainer launch`, started and started again, with all that it has started."""

    def __init__(self, folder: Path, words: list[str]) -> None:
        self.folder, self._words, self.num_starts = folder, words, 0
        self.log = folder / "service.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.num_starts += 1
        self.end_leftovers()
        with open(self.log, "ab") as output:
            self.process = subprocess.Popen(
                [*start.command("trainer", "launch"), *self._words],
                env=environment(**{FOLDER: str(self.folder)}),
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def supervisor(self) -> psutil.Process:
        assert self.process is not None
        return psutil.Process(self.process.pid)

    @property
    def exit_code(self) -> int | None:
        """Of the process that was started last; None while it runs."""
        assert self.process is not None
        return self.process.poll()

    def below(self, what: str) -> list[psutil.Process]:
        """The processes with a word in their command line: `launcher_child`, ` train `, `planted` (the writer)."""
        try:
            found = self.supervisor.children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return [process for process in found if what in _command_of(process)]

    def ranks(self) -> list[psutil.Process]:
        return sorted(
            (process for process in self.below(" train ") if "launcher_child" not in _command_of(process)),
            key=lambda process: process.environ().get("RANK", "0"),
        )

    def tree(self) -> list[psutil.Process]:
        """Everything: the supervisor, and what it has started."""
        return [self.supervisor, *self.supervisor.children(recursive=True)]

    def end_leftovers(self) -> None:
        """Waits for what a killed tree has left: writers commit, ranks save."""
        ends = time.monotonic() + PATIENCE_SECONDS
        while _of_folder(self.folder) and time.monotonic() < ends:
            time.sleep(0.05)

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            for process in self.tree():
                _send([process], signal.SIGKILL)
            self.process.wait()
        _send(_of_folder(self.folder), signal.SIGKILL)

    def text(self) -> str:
        return self.log.read_text(errors="replace")[-20_000:]


def _command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _of_folder(folder: Path) -> list[psutil.Process]:
    """Every process that was started for a month in this folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(FOLDER) == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def _send(processes: Iterable[psutil.Process], number: int) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.Error:
            pass


@dataclass
class Month:
    """One run, to which faults happen; a straight one beside it, to which none does."""

    folder: Path
    num_faults: int
    generator: random.Random
    kinds: tuple[str, ...]
    steps_a_fault: int
    """The length of the run, per fault."""
    struck: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.max_steps = self.steps_a_fault * (self.num_faults + 1)
        self.recipe = self._recipe(self.folder / "month")
        cluster = write_cluster(self.folder, 2)
        self.service = Service(self.recipe.parent, [str(cluster), str(self.recipe)])
        self.run = self.recipe.parent / "runs" / "tiny"
        self.seconds = 0.0

    def _recipe(self, folder: Path) -> Path:
        write_shards(folder / "data", num_train=100_000)  # more than is learned by heart, whose steps are all spikes
        return write_recipe(folder, max_steps=self.max_steps, **SETTINGS)

    # What the run does

    def step(self) -> int:
        """The newest step of this launch, by the end of its curve."""
        try:
            with open(self.run / CURVE, "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
                lines = file.read().split(b"\n")[:-1]
        except FileNotFoundError:
            return 0
        return int(json.loads(lines[-1])["step"]) if len(lines) > 1 else 0

    def until(self, is_so: Callable[[], bool], what: str) -> bool:
        """Waits while the service runs, and starts it again where it was killed; False when the run has finished meanwhile."""
        ends = time.monotonic() + PATIENCE_SECONDS
        while not is_so():
            assert time.monotonic() < ends, (
                f"{what} did not come within {PATIENCE_SECONDS:.0f} s:\n{self.service.text()}"
            )
            code = self.service.exit_code
            if code == 0:
                return False
            if code is not None:
                assert code == -signal.SIGKILL, f"the service ended with {code}:\n{self.service.text()}"
                self.service.start()
            time.sleep(0.02)
        return True

    def goes_on(self, ended: Iterable[psutil.Process] = ()) -> bool:
        """Waits until these are gone, and a step is taken that none has taken before; False when the run has finished."""
        self.until(lambda: not any(process.is_running() for process in ended), "the end of what was struck")
        before = self.newest
        return self.until(lambda: self.service.exit_code is None and self.step() > before, f"step {before + 1}")

    @property
    def newest(self) -> int:
        """The newest step that any launch has taken."""
        lost = self.run / "metrics.lost.jsonl"
        lines = lost.read_text().splitlines() if lost.exists() else []
        return max([self.step(), *(json.loads(line).get("step", 0) for line in lines)])

    # What happens to it

    def happen(self) -> None:
        """All faults, one after another, and the end."""
        self.service.start()
        deck = self.deck()
        for number, kind in enumerate(deck):
            at = round(self.steps_a_fault * (number + self.generator.uniform(0.2, 0.8)))
            if not self.until(lambda at=at: self.step() >= at, f"step {at}"):
                raise AssertionError(f"the run finished before fault {number} of {len(deck)}")
            time.sleep(self.generator.uniform(0.0, 0.05))
            before, moment = self.step(), time.monotonic()
            ended = self.service.ranks() if kind in INTERRUPTING else ()
            getattr(self, f"_{kind}")()
            assert self.goes_on(ended) or number + 1 == len(deck), f"the run finished before fault {number + 1}"
            seconds = time.monotonic() - moment
            self.struck.append({"kind": kind, "step": before, "seconds_until_a_new_step": round(seconds, 2)})
            print(f"{number + 1:3d}  {kind:12s} step {before:5d}  a new step after {seconds:5.1f} s", flush=True)
        self.until(lambda: False if self.service.exit_code is None else self.service.exit_code == 0, "the end")
        assert outcome(self.recipe)["outcome"] == "finished"

    def deck(self) -> list[str]:
        """Every kind about equally often, in random order; memory that is full at most as often as micro_batch can be halved."""
        drawn: list[str] = []
        while len(drawn) < self.num_faults:
            halves = drawn.count("memory") < math.log2(SETTINGS["micro_batch"])
            left = [kind for kind in self.kinds if kind != "memory" or halves]
            drawn += self.generator.sample(left, len(left))
        return drawn[: self.num_faults]

    def _rank(self) -> None:
        _send([self.generator.choice(self.service.ranks())], signal.SIGKILL)

    def _launcher(self) -> None:
        _send(self.service.below("launcher_child")[:1], signal.SIGKILL)

    def _supervisor(self) -> None:
        _send([self.service.supervisor], signal.SIGKILL)

    def _writer(self) -> None:
        _send(self.service.below("planted"), signal.SIGKILL)

    def _tree(self) -> None:
        _send(self.service.tree(), signal.SIGKILL)

    def _stopped(self) -> None:
        """One rank stands still, until the launch has found it, named it and ended it."""
        rank, before = self.generator.randrange(2), len(read_events(self.run, "hang"))
        while not self._is_ended_when_stopped(rank):
            at = self.newest
            self.until(lambda at=at: self.step() > at, "a step")
        self.until(lambda: len(read_events(self.run, "hang")) > before, "the word of a hang")
        assert [event["ranks"] for event in read_events(self.run, "hang")[before:]] == [[rank]]

    def _is_ended_when_stopped(self, rank: int) -> bool:
        """Whether somebody ended a rank that was suspended; it is let go on where nobody did."""
        process, ends = self.service.ranks()[rank], time.monotonic() + HANG_SECONDS
        _send([process], signal.SIGSTOP)
        self.until(lambda: not process.is_running() or time.monotonic() > ends, "a hang")
        _send([process], signal.SIGCONT)
        return not process.is_running()

    def _shard(self) -> None:
        """The batches of a stretch of the data are bad, whenever they are computed, until the run has gone back."""
        before = len(read_events(self.run, "rollback"))
        self._bad_batch(SHARD)
        self.until(lambda: len(read_events(self.run, "rollback")) > before, "a rollback")

    def _clock(self) -> None:
        """The machine is suspended: all stand still together, and the clock has jumped when they go on."""
        tree = self.service.tree()
        _send(tree, signal.SIGSTOP)
        time.sleep(3.0)
        _send(reversed(tree), signal.SIGCONT)

    def _full_disk(self) -> None:
        self._while_there(FULL)

    def _hanging_disk(self) -> None:
        self._while_there(HANGS)

    def _while_there(self, name: str) -> None:
        (self.service.folder / name).touch()
        time.sleep(self.generator.uniform(1.0, 3.0))
        (self.service.folder / name).unlink()

    def _nan_batch(self) -> None:
        self._bad_batch("nan")

    def _spike_batch(self) -> None:
        self._bad_batch("spike")

    def _bad_batch(self, kind: str) -> None:
        folder = self.service.folder
        write_whole(SPOIL, {"kind": kind, "after": self.newest}, folder)
        self.until(lambda: not (folder / SPOIL).exists(), "a bad batch")

    def _memory(self) -> None:
        self._raise(f"memory is full, says fault {len(self.struck)}")

    def _exception(self) -> None:
        self._raise(f"fault {len(self.struck)}")

    def _raise(self, words: str) -> None:
        folder, name = self.service.folder, f"{RAISE}-{self.generator.randrange(2)}"
        write_whole(name, words, folder)
        self.until(lambda: not (folder / name).exists(), "the exception")

    # What came of it

    def skipped(self) -> list[int]:
        """The steps whose update was skipped, by the journal, but for those that the run went back from; all that were made bad are among them."""
        skipped: set[int] = set()
        for event in read_events(self.run, "bad_batch", "rollback"):
            if event["event"] == "rollback":
                skipped = {step for step in skipped if step < event["first_step"]}
            elif event["skipped"]:
                skipped.add(event["step"])
        bad = {
            step for kind, taken in (read(BAD, self.service.folder) or {}).items() if kind != SHARD for step in taken
        }
        assert bad <= skipped, bad - skipped
        return sorted(skipped)

    def stepped_over(self) -> list[list[int]]:
        """The positions that the run went back from, as the journal says; of each bad shard there is one such stretch."""
        stretches = [event["sequences"] for event in read_events(self.run, "rollback")]
        bad = (read(BAD, self.service.folder) or {}).get(SHARD, [])
        assert len(stretches) == len(bad), (stretches, bad)
        assert all(begin <= shard < end for (begin, end), shard in zip(stretches, bad, strict=True)), (stretches, bad)
        return stretches

    def check(self) -> dict[str, Any]:
        """Compares it with the straight run, and asks its journal; what is worth to be kept."""
        straight = self._straight()
        events = read_events(self.run)
        assert [record["step"] for record in steps(self.recipe)] == list(range(1, self.max_steps + 1))
        assert not [event for event in events if event["event"] == "refusal"], "a checkpoint was refused"
        verdicts = [event for event in events if event["event"] == "verdict"]
        assert all(event["exact"] is not False for event in verdicts), verdicts
        ended_service = sum(fault["kind"] in ("supervisor", "tree") for fault in self.struck)
        assert self.service.num_starts == 1 + ended_service
        assert final_bytes(self.recipe, self.max_steps) == final_bytes(straight, self.max_steps), self.folder
        hangs = [event for event in events if event["event"] == "hang"]
        assert len(hangs) == sum(fault["kind"] == "stopped" for fault in self.struck), hangs
        step_seconds = statistics.median(record["step_seconds"] for record in steps(straight))
        return {
            "faults": len(self.struck),
            "faults_by_kind": dict(Counter(fault["kind"] for fault in self.struck)),
            "steps": self.max_steps,
            "batches_skipped": self.skipped(),
            "sequences_stepped_over": self.stepped_over(),
            "hangs": [{name: event[name] for name in ("step", "ranks", "seconds")} for event in hangs],
            "micro_batch_from_step": dict(self._micro_batches()),
            "service_starts": self.service.num_starts,
            "restarts": sum(event["event"] == "restart" for event in events),
            "resumes": sum(event["event"] == "resume" for event in events),
            "exact_verdicts": sum(event["exact"] is True for event in verdicts),
            "final_weights": "bit-identical to the straight run's",
            **self._effective_time(step_seconds, [event for event in events if event["event"] == "save"]),
            "struck": self.struck,
        }

    def _straight(self) -> Path:
        """The run to which nothing happens but that it is told which batches to skip, what to step over, and where micro_batch changes."""
        recipe = self._recipe(self.folder / "straight")
        parts = [*self._micro_batches(), (self.max_steps, None)]
        for (end, _), (begin, micro_batch) in zip(parts, [(0, None), *parts], strict=False):
            if begin == end:
                continue
            told = {"skip": self.skipped(), "step_over": self.stepped_over(), "stop_at": end}
            write_whole(TOLD, told, recipe.parent)
            other = () if micro_batch is None else (f"micro_batch={micro_batch}",)
            run = Started(recipe, ("safety.spike.skip=false", *other), 2, environment={FOLDER: str(recipe.parent)})
            assert run.wait(PATIENCE_SECONDS + self.max_steps) == (0 if end == self.max_steps else 75), run.text()
        return recipe

    def _micro_batches(self) -> list[tuple[int, int]]:
        """From which step on the run went on with which micro_batch, since memory was full."""
        found, coming = [], None
        for event in read_events(self.run, "micro_batch", "train"):
            if event["event"] == "micro_batch":
                coming = event["now"]
            elif coming is not None:
                found.append((event["step"], coming))
                coming = None
        return found

    def _effective_time(self, step_seconds: float, saves: list[dict[str, Any]]) -> dict[str, Any]:
        """How much of the wall time were steps that count, and what the best interval between saves would have left by theory."""
        down = [fault["seconds_until_a_new_step"] for fault in self.struck if fault["kind"] in INTERRUPTING]
        found = {
            "wall_seconds": round(self.seconds, 1),
            "step_seconds": step_seconds,
            "effective": round(step_seconds * self.max_steps / self.seconds, 4),
        }
        if not down or not saves:
            return found
        between, restart = self.seconds / len(down), statistics.median(down)
        save = statistics.median(event["cpu_seconds"] for event in saves)
        optimum = {
            name: round(best(between, restart, save), 4) for name, best in {"young": young, "daly": daly}.items()
        }
        costs = {"seconds_between_interruptions": between, "restart_seconds": restart, "save_seconds": save}
        return {**found, **{name: round(value, 3) for name, value in costs.items()}, "effective_at_best": optimum}


def young(between: float, restart: float, save: float) -> float:
    """The effective share of the time at Young's interval: first order in the costs, in seconds."""
    interval = math.sqrt(2 * save * between)
    return max(0.0, 1 - save / interval - (interval / 2 + restart) / between)


def daly(between: float, restart: float, save: float) -> float:
    """The same at Daly's interval, by his formula for the whole time, in which a restart and a save may fail too."""
    ratio = save / (2 * between)
    interval = math.sqrt(2 * save * between) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - save if ratio < 1 else between
    return interval / (between * math.exp(restart / between) * math.expm1((interval + save) / between))


def live(
    folder: Path, num_faults: int, seed: int, kinds: tuple[str, ...] = KINDS, steps_a_fault: int = 60
) -> dict[str, Any]:
    """One month; what came of it. raises AssertionError where something did not go as it must"""
    month = Month(folder, num_faults, random.Random(seed), kinds, steps_a_fault)
    began = time.monotonic()
    try:
        month.happen()
        month.seconds = time.monotonic() - began
        return month.check()
    finally:
        month.service.kill()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--faults", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", nargs="*", default=KINDS, choices=KINDS)
    parser.add_argument("--json", type=Path)
    wanted = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="month-"))
    came = live(folder, wanted.faults, wanted.seed, tuple(wanted.kinds))
    shutil.rmtree(folder)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }
    versions = {name: version(name) for name in ("torch", "accelerate", "transformers")}
    facts = {"hardware": machine, "versions": versions, "seed": wanted.seed, **came}
    print(json.dumps({name: value for name, value in facts.items() if name != "struck"}, indent=1))
    if wanted.json:
        wanted.json.parent.mkdir(parents=True, exist_ok=True)
        wanted.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
