"""What `trainer bench precision` measured, and how a run finds it again: one JSON file for each set of conditions that decide about speed.

A file is found by its conditions and by nothing else: a run that differs in one of them is one that nobody measured. Needs no torch.
"""

import hashlib
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer import files
from trainer.precision.recipes import RECIPES

log = logging.getLogger(__name__)

FOLDER = ".measured"
"""Beside the runs; anything with a dot is not a run."""

LEAST_GAIN = 0.02
"""Less is within what a machine varies by, and is called no gain."""


@dataclass(frozen=True)
class Measured:
    """The fp8 recipes that were measured, beside the fastest bf16."""

    date: str
    gains: Mapping[str, float]
    """Tokens a second over those of the fastest bf16, minus 1, by recipe; those whose loss stayed with bf16's."""

    @property
    def fastest(self) -> str | None:
        """The fastest fp8 recipe; the first in the order of RECIPES where two are equal, None where none was measured."""
        return max((name for name in RECIPES if name in self.gains), key=lambda name: self.gains[name], default=None)

    def words(self) -> str:
        """Why `auto` takes it, as a clause."""
        return f"the fastest fp8 recipe here, as measured by bench precision on {self.date}"

    def warning(self, recipe: str) -> str | None:
        """What to know of a run with this recipe, where it was measured and is not faster than bf16."""
        gain = self.gains.get(recipe)
        if gain is None or gain >= LEAST_GAIN:
            return None
        pace = f"{1 + gain:.2f}x the tokens/s of bf16 (bench precision, {self.date}), and less than {LEAST_GAIN:.0%} is no gain"
        return f"precision: fp8 is not faster here: {RECIPES[recipe].title} was measured at {pace}; it runs, since the cluster file asks for it"


def place(runs: Path, conditions: Mapping[str, Any]) -> Path:
    """The file for these conditions; `runs` is the folder of runs."""
    digest = hashlib.sha256(json.dumps(conditions, sort_keys=True).encode()).hexdigest()
    return runs / FOLDER / f"precision-{digest[:16]}.json"


def store(runs: Path, conditions: Mapping[str, Any], date: str, gains: Mapping[str, float], **more: Any) -> Path:
    """Writes a result in place of an earlier one under the same conditions; `more` is for people. Returns the file."""
    path = place(runs, conditions)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"date": date, "gains": dict(gains), **more, "conditions": dict(conditions)}
    files.write_atomic(path, json.dumps(content, indent=1) + "\n")
    return path


def find(runs: Path, conditions: Mapping[str, Any]) -> Measured | None:
    """The result under these conditions; None where there is none, or one that cannot be read, which is told."""
    path = place(runs, conditions)
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        gains = {name: float(gain) for name, gain in content["gains"].items() if name in RECIPES}
        if not all(math.isfinite(gain) for gain in gains.values()):
            raise ValueError("a gain is not a number")
        return Measured(str(content["date"]), gains)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        log.warning("%s cannot be read (%s) and is left aside; bench precision writes it anew", path, why)
        return None
