"""What two runs left, compared: the curves step by step, the last checkpoints byte by byte, and what the resumed run said of itself."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.checkpoint.format.manifest import folder_name
from trainer.checkpoint.format.tensors import differing_tensors
from trainer.journal import read_events
from trainer.metrics.curves import CURVE, read_records

COMPARED = ("data_digest", "loss", "grad_norm", "val_loss")
WEIGHTS, MOMENTS = "model.safetensors", "optimizer.bin"
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Ran:
    """Where a run left what it did."""

    run: Path
    """runs/NAME."""
    checkpoints: Path
    """checkpoints/NAME."""


@dataclass(frozen=True)
class Start:
    """One start of a run, by its journal."""

    resumed_step: int
    """The step of the checkpoint that it went on from; 0 for a fresh start."""
    verdict: str | None
    """What the comparison of the steps that it replayed said; None when it said nothing."""
    is_exact: bool | None


def starts(events: Iterable[Mapping[str, Any]]) -> list[Start]:
    """The starts of a run from its journal's events, the first one first."""
    found: list[Start] = []
    for event in events:
        if event["event"] == "start":
            found.append(Start(0, None, None))
        elif event["event"] == "resume" and found:
            found[-1] = Start(event["step"], None, None)
        elif event["event"] == "verdict" and found:
            found[-1] = Start(found[-1].resumed_step, event["text"], bool(event["exact"]))
    return found


def differences(straight: Ran, killed: Ran, *, step: int, reached: Sequence[int]) -> list[str]:
    """In what the killed run differs from the straight one, as sentences; none when it is the same to the last bit.

    step     the last of both
    reached  how far the killed run had come at each of its kills
    """
    curve = curve_difference(read_records(straight.run / CURVE), read_records(killed.run / CURVE))
    problems = verdict_problems(starts(read_events(killed.run)), reached)
    ours, theirs = (ran.checkpoints / folder_name(step) for ran in (straight, killed))
    found = [curve, *problems, _weights_difference(ours, theirs), _bytes_difference(ours, theirs, MOMENTS)]
    return [sentence for sentence in found if sentence]


def curve_difference(straight: Sequence[Mapping[str, Any]], killed: Sequence[Mapping[str, Any]]) -> str | None:
    """The first step whose numbers are not the same, with these numbers."""
    for ours, theirs in zip(straight, killed, strict=False):
        if ours["step"] != theirs["step"]:
            return f"{CURVE}: step {theirs['step']} stands where step {ours['step']} should"
        for name in COMPARED:
            if ours.get(name) != theirs.get(name):
                return f"step {ours['step']}: {name} is {theirs.get(name)} in the killed run and {ours.get(name)} in the straight one"
    if len(straight) != len(killed):
        return f"{CURVE}: {len(killed)} records in the killed run and {len(straight)} in the straight one"
    return None


def verdict_problems(found: Sequence[Start], reached: Sequence[int]) -> list[str]:
    """The resumes that were not found exact, though steps had been lost."""
    problems = []
    for number, (start, last) in enumerate(zip(found[1:], reached, strict=False), start=1):
        if start.is_exact is False:
            problems.append(f"after kill {number}: {start.verdict}")
        elif start.is_exact is None and last > start.resumed_step:
            problems.append(
                f"after kill {number}: steps {start.resumed_step + 1} to {last} were replayed and not compared"
            )
    return problems


def _weights_difference(ours: Path, theirs: Path) -> str | None:
    """Where the weights are not the same: by the names of tensors, as far as it is in these."""
    if not (sentence := _bytes_difference(ours, theirs, WEIGHTS)):
        return None
    try:
        names, total = differing_tensors(ours / WEIGHTS, theirs / WEIGHTS)
    except (OSError, ValueError):
        return sentence
    return f"{sentence}; {len(names)} of {total} tensors, the first is {names[0]}" if names else sentence


def _bytes_difference(ours: Path, theirs: Path, name: str) -> str | None:
    for folder in (ours, theirs):
        if not (folder / name).is_file():
            return f"{folder / name} is missing"
    place = first_difference(ours / name, theirs / name)
    return None if place is None else f"{name} of {theirs.name} differs from byte {place:,} on"


def first_difference(ours: Path, theirs: Path) -> int | None:
    """The place of the first byte in which two files differ; the end of the shorter where one goes on; None when they are equal."""
    position = 0
    with open(ours, "rb") as first, open(theirs, "rb") as second:
        while True:
            a, b = first.read(_BLOCK_BYTES), second.read(_BLOCK_BYTES)
            if a != b:
                pairs = enumerate(zip(a, b, strict=False))
                return position + next((index for index, (x, y) in pairs if x != y), min(len(a), len(b)))
            if not a:
                return None
            position += len(a)
