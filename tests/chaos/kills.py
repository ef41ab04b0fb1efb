"""Kills runs at random instants, resumes them, and proves that nothing came of it.

    python -m tests.chaos.kills --kills 200 --seed 1 --json tests/benchmarks/results/kills.json

Runs of tiny models are killed with SIGKILL again and again until they end: all their processes (`trainer`), the process that writes
their checkpoints (`writer`), all of these (`both`), one rank of two (`rank`); by a clock, or from inside a copy, a write, a rename, a prune
(aimed.py). Ends with 1 when

    a run that was killed differs from one that never was: final weights and moments, or any number of any step, lost ones included
    a verdict says so, or a checkpoint was refused on the way
    a resume lost more than the steps since the last commit, or since the last whole snapshot in memory where the writer lived
"""

import argparse
import json
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from tests.chaos.aimed import IN_TRAINER, IN_WRITER, PROCESSES, STRUCK, Aim, arm, writer_told
from tests.launching import TINY_GPT2, Started, final_bytes, outcome, steps, train, write_recipe
from trainer.checkpoint.format.store import CheckpointStore
from trainer.journal import read_events

SHAPES = {
    "llama-adamw": ({}, 1),
    "gpt2-dropout-adamw": ({"model": {"config": TINY_GPT2}}, 1),
    "llama-muon": ({"optimizer": {"name": "muon"}}, 1),
    "gpt2-dropout-adamw-2-ranks": ({"model": {"config": TINY_GPT2}}, 2),
}
FIELDS = ("loss", "grad_norm", "data_digest", "lr", "tokens", "epoch")
KINDS = ("trainer", "writer", "both", "rank")

OFTEN = {"every_steps": 9, "max_overhead_fraction": 1.0, "max_lost_work_seconds": 1.0, "keep_last": 2}
"""Snapshots in memory at almost every step, and a commit every few."""

LONGEST_SECONDS = 60.0


@dataclass
class Tally:
    """What was done, and what it showed."""

    kills: Counter[str] = field(default_factory=Counter)
    places: Counter[str] = field(default_factory=Counter)
    steps_lost: dict[str, list[int]] = field(default_factory=dict)
    """Steps that a kill undid, by its kind."""
    resumes: int = 0
    rescues: int = 0
    exact_verdicts: int = 0
    steps_compared: int = 0
    runs: int = 0

    @property
    def num_kills(self) -> int:
        return sum(self.kills.values())


@dataclass(frozen=True)
class Kill:
    """Who is killed and where: a place inside, the n-th time, or so many seconds after the start."""

    kind: str
    victims: tuple[str, ...]
    place: str | None
    nth: int
    seconds: float
    num_slots: int = 2


def draw(generator: random.Random, num_ranks: int) -> Kill:
    """A kill at random, half of them aimed."""
    kind = generator.choice(KINDS if num_ranks > 1 else KINDS[:3])
    ranks = tuple(map(str, range(num_ranks)))
    victims = {"trainer": ranks, "writer": ("writer",), "both": (*ranks, "writer"), "rank": (generator.choice(ranks),)}[
        kind
    ]
    victims, num_slots = tuple(generator.sample(victims, len(victims))), generator.choice((1, 2, 2))
    if generator.random() < 0.5:
        return Kill(
            kind,
            victims,
            None,
            0,
            generator.uniform(0.0, 1.0) + generator.choice((0.0, 0.5 + 0.5 * num_ranks)),
            num_slots,
        )
    in_trainer = generator.random() < 0.35
    places = IN_TRAINER if in_trainer else [place for place in IN_WRITER if place != "rescue" or kind == "both"]
    return Kill(
        kind,
        victims,
        generator.choice(places),
        generator.randint(1, 12 if in_trainer else 5),
        generator.uniform(1.0, 2.0),
        num_slots,
    )


class Life:
    """One run, killed again and again, in a folder of its own."""

    def __init__(self, folder: Path, shape: str, max_steps: int, tally: Tally) -> None:
        changes, self.num_ranks = SHAPES[shape]
        folder.mkdir(parents=True)
        self.folder, self.tally = folder, tally
        usual = {
            "checkpoint": OFTEN,
            "metrics": {"trackers": [], "console_every_steps": 1000},
            "evaluation": {"every_steps": 50},
        }
        self.recipe = write_recipe(folder, max_steps=max_steps, **usual, **changes)
        self.max_steps = max_steps
        self.store = CheckpointStore(folder / "checkpoints" / "tiny")
        self.promised = self.reached = self.num_seen = self.num_launches = 0
        self.last_kill: Kill | None = None

    def killed(self, kill: Kill, then_after: float) -> bool:
        """One launch, ended by a kill; False when it came to its end before.

        then_after   how many seconds later the trainer is killed where the kill was of the writer alone
        """
        self.num_launches += 1
        self.notes = (
            self.folder / f"notes-{self.num_launches}"
        )  # the writer of the launch before may still look at its own
        self.notes.mkdir()
        aim = Aim(
            str(self.notes),
            kill.place,
            kill.nth,
            ("writer",) if kill.place == "rescue" else kill.victims,
            kill.num_slots,
        )
        run = Started(self.recipe, (), self.num_ranks, partial(arm, aim))
        pids = {str(number): process.pid for number, process in enumerate(run.ranks)}
        (self.notes / PROCESSES).write_text(json.dumps(pids))
        try:
            if not self._strike(run, kill, pids):
                return self._ended(run)
            self._count(kill)
            if kill.kind == "writer":
                dead, _ = writer_told(self.notes)
                kill = Kill("trainer", tuple(pids), None, 0, then_after)
                if not self._strike(run, kill, pids):
                    return self._ended(run)
                self._count(kill)
            else:
                dead = writer_told(self.notes)[0] if kill.kind == "both" else None
            run.wait()
        finally:
            run.kill()
            if kill.place != "rescue":
                (self.notes / STRUCK).touch()  # its writer lives on, and strikes no more
        self._settle(kill, dead)
        return True

    def _ended(self, run: Started) -> bool:
        """The run came to its end before a kill met it: False, there is nothing more to kill."""
        assert run.wait() == 0, run.text()
        self.check_events()
        self.promised, self.last_kill = self.max_steps, None
        return False

    def _count(self, kill: Kill) -> None:
        self.tally.kills[kill.kind] += 1
        self.tally.places[kill.place or "clock"] += 1

    def _strike(self, run: Started, kill: Kill, pids: dict[str, int]) -> bool:
        """Waits for the instant and kills; False when the run ended before."""
        until = time.monotonic() + (LONGEST_SECONDS if is_aimed(kill) else kill.seconds)
        while time.monotonic() < until and run.running and not (self.notes / STRUCK).exists():
            time.sleep(0.001)
        if is_aimed(kill):
            assert time.monotonic() < until, f"the run hangs:\n{run.text()}"
            return (self.notes / STRUCK).exists()
        return run.running and self._kill_from_outside(kill, pids)

    def _kill_from_outside(self, kill: Kill, pids: dict[str, int]) -> bool:
        writer = None if kill.place == "rescue" else writer_of(pids["0"])  # which dies later there, while it rescues
        found = [pid for victim in kill.victims if (pid := {**pids, "writer": writer}[victim])]
        for pid in found:
            os.kill(pid, signal.SIGKILL)
        return bool(found)

    def _settle(self, kill: Kill, dead_writer: int | None) -> None:
        """Checks what the launch that was killed did, and notes what the kill may undo: what is whole in memory counts where a writer has it."""
        self.check_events()
        committed = max((entry.step for entry in self.store.entries()), default=0)
        pid, whole = writer_told(self.notes)
        self.promised = max([committed, *(() if pid == dead_writer else whole.values())])
        self.reached = max((record["step"] for record in steps(self.recipe)), default=0)
        self.last_kill = kill

    def check_events(self) -> None:
        """What the journal says since the last look: where a launch resumed, what its replay proved, that nothing was refused."""
        events = read_events(self.folder / "runs" / "tiny")
        for event in events[self.num_seen :]:
            match event["event"]:
                case "resume":
                    self._check_resume(event["step"])
                case "verdict":
                    assert event["exact"], event["text"]
                    self.tally.exact_verdicts += 1
                case "save":
                    self.tally.rescues += event["reason"] == "rescued"
                case "refusal" | "save_failed":
                    raise AssertionError(f"{self.folder}: {event}")
        self.num_seen = len(events)

    def _check_resume(self, step: int) -> None:
        assert step >= self.promised, f"{self.folder}: resumed at {step}, promised {self.promised} ({self.last_kill})"
        self.tally.resumes += 1
        if self.last_kill:
            self.tally.steps_lost.setdefault(self.last_kill.kind, []).append(self.reached - step)

    def finish(self, straight: "Life") -> None:
        """Runs to the end, and compares everything with the run that was never killed."""
        train(self.recipe, num_processes=self.num_ranks)
        self.check_events()
        assert outcome(self.recipe)["outcome"] == "finished"
        expected = {record["step"]: facts_of(record) for record in steps(straight.recipe)}
        assert [record["step"] for record in steps(self.recipe)] == list(range(1, self.max_steps + 1))
        for record in (*steps(self.recipe), *lost_steps(self.folder)):
            assert facts_of(record) == expected[record["step"]], f"{self.folder}: step {record['step']}"
            self.tally.steps_compared += 1
        assert final_bytes(self.recipe, self.max_steps) == final_bytes(straight.recipe, self.max_steps), self.folder
        self.tally.runs += 1


def is_aimed(kill: Kill) -> bool:
    """Whether it is struck from inside; a rescue begins when a clock has killed the trainer."""
    return kill.place not in (None, "rescue")


def facts_of(record: dict[str, Any]) -> list[Any]:
    return [record[name] for name in FIELDS]


def lost_steps(folder: Path) -> Iterator[dict[str, Any]]:
    path = folder / "runs" / "tiny" / "metrics.lost.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return (record for line in lines if "loss" in (record := json.loads(line)))


def writer_of(pid: int) -> int | None:
    """The process that writes for a trainer; None where there is none yet or any more."""
    try:
        children = psutil.Process(pid).children()
        return next(
            (
                child.pid
                for child in children
                if any("save.writer" in word or "chaos.aimed" in word for word in child.cmdline())
            ),
            None,
        )
    except psutil.Error:
        return None


def chaos(folder: Path, num_kills: int, seed: int, max_steps: int, shapes: tuple[str, ...] = tuple(SHAPES)) -> Tally:
    """Kills so many times, runs of each shape in turn."""
    generator, tally = random.Random(seed), Tally()
    straight = {}
    for name in shapes:
        straight[name] = Life(folder / "straight" / name, name, max_steps, tally)
        train(straight[name].recipe, num_processes=straight[name].num_ranks)
    number = 0
    while tally.num_kills < num_kills:
        shape = shapes[number % len(shapes)]
        life = Life(folder / f"{number:03d}", shape, max_steps, tally)
        most = tally.num_kills + generator.randint(6, 14)
        while tally.num_kills < min(most, num_kills):
            kill = draw(generator, life.num_ranks)
            if not life.killed(kill, generator.uniform(0.0, 1.0)):
                break
            print(
                f"{tally.num_kills:4d}  {shape:27s} {kill.kind:8s} {kill.place or 'clock':8s} step {life.reached}",
                flush=True,
            )
        life.finish(straight[shape])
        shutil.rmtree(life.folder)
        number += 1
    return tally


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--json", type=Path)
    wanted = parser.parse_args()
    started, folder = time.monotonic(), Path(tempfile.mkdtemp(prefix="kills-"))
    tally = chaos(folder, wanted.kills, wanted.seed, wanted.steps)
    shutil.rmtree(folder)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }
    facts = {
        "hardware": machine,
        "versions": {name: version(name) for name in ("torch", "accelerate", "transformers", "safetensors")},
        "seed": wanted.seed,
        "steps_of_a_run": wanted.steps,
        "wall_seconds": round(time.monotonic() - started, 1),
        "kills": tally.num_kills,
        "kills_by_kind": dict(tally.kills),
        "kills_by_place": dict(tally.places),
        "runs": tally.runs,
        "resumes": tally.resumes,
        "resumes_that_differ": 0,  # the first would have ended this
        "exact_verdicts": tally.exact_verdicts,
        "rescues": tally.rescues,
        "steps_compared": tally.steps_compared,
        "worst_steps_lost_by_kind": {kind: max(lost) for kind, lost in tally.steps_lost.items()},
        "mean_steps_lost_by_kind": {kind: round(sum(lost) / len(lost), 2) for kind, lost in tally.steps_lost.items()},
    }
    print(json.dumps(facts, indent=1))
    if wanted.json:
        wanted.json.parent.mkdir(parents=True, exist_ok=True)
        wanted.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
