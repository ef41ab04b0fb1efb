"""Replayed steps against what was written of them before: the proof that a resume was exact.

A run killed at step 87 and resumed at 50 takes the steps 51 to 87 again. Their losses, gradient norms and data must be the
same to the last bit, and all of that was written down the first time.

They must be so where everything is equal that decides about bits. Those facts have names and values; each record has only their digest,
the `replay_key`, and what it stands for is in `runs/NAME/replay_facts.jsonl`, once for each key.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from trainer import files
from trainer.text import numbered

FACTS = "replay_facts.jsonl"
COMPARED = ("data_digest", "loss", "grad_norm")

UNRECORDED: dict[str, Any] = {
    "muon_iteration": "bfloat16",
    "head": "passes, 256 MB a chunk",
    "optimizer.groups": [],
    "routers": "no auxiliary loss in the training loss",
}
"""What a fact was, by its name, in every launch that did not write it down yet: for a fact that is new, and was something else before."""

_SHOWN = 8
"""How many differences a sentence names; the others are counted."""


class ReplayProof:
    """Compares steps as they come with those that were lost, and says the verdict once."""

    def __init__(
        self,
        lost: Iterable[dict[str, Any]],
        resumed_step: int,
        replay_key: str,
        facts: Mapping[str, Any] | None = None,
        earlier: Mapping[str, Mapping[str, Any]] | None = None,
        assumed: Mapping[str, Any] | None = None,
    ) -> None:
        """
        replay_key  stands for everything that must be equal for a bit-exact replay; other records are not compared
        facts       what it stands for, by name
        earlier     what other keys stand for
        assumed     facts of launches that wrote down a key alone, as far as the checkpoint tells them
        """
        later = [record for record in lost if record["step"] > resumed_step and "loss" in record]
        self._expected = {record["step"]: record for record in later if record.get("replay_key") == replay_key}
        others = {record["step"]: record for record in later if record["step"] not in self._expected}
        self._num_others = len(others)
        self._last = max(self._expected, default=None)
        self._compared = 0
        if others:
            before = (earlier or {}).get(others[max(others)].get("replay_key", ""), assumed or {})
            self._why = reason_beyond_comparison(before, facts or {})

    @property
    def announcement(self) -> str | None:
        """What will be compared and what cannot be, for the log at the start; None when nothing was lost."""
        parts = []
        if self._expected:
            number = len(self._expected)
            again = "replayed and compared with what was written of"
            parts.append(f"1 step is {again} it before" if number == 1 else f"{number} steps are {again} them before")
        if self._num_others:
            steps = f"{self._num_others} lost step{'' if self._num_others == 1 else 's'}"
            parts.append(f"{steps} cannot be compared: {self._why}")
        return "; ".join(parts) or None

    def compare(self, record: dict[str, Any]) -> str | None:
        """Takes one step's record; returns the verdict, once, when it is certain."""
        expected = self._expected.get(record["step"])
        if expected is None or self._last is None:
            return None
        different = [name for name in COMPARED if record[name] != expected[name]]
        if different:
            self._last = None
            return f"resume NOT exact: {self._diagnosis(record, expected, different)}"
        self._compared += 1
        if record["step"] == self._last:
            self._last = None
            return f"resume exact: {self._compared}/{len(self._expected)} replayed steps bit-identical"
        return None

    def _diagnosis(self, record: dict[str, Any], expected: dict[str, Any], different: list[str]) -> str:
        values = ", ".join(f"{name} {record[name]} instead of {expected[name]}" for name in different)
        if "data_digest" in different:
            cause = "other data was read"
        elif self._compared == 0:
            cause = "the data is the same: weights or random state were not restored, or the machine computes otherwise"
        else:
            cause = f"the data is the same and {numbered(self._compared, 'step')} agreed: moments or random state, or a kernel that is not deterministic"
        return f"at step {record['step']} {values} ({cause})"


def fact_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`name before -> now` for each fact that differs; a fact that is none, or absent, is the same as one that is not there.

    One that the earlier launch did not write down counts as what it was then by UNRECORDED; where that is not known, it says nothing.
    """
    parts = []
    for name in {**now, **before}:
        new, old, note = now.get(name), before.get(name), ""
        if name not in before and new is not None:
            old, note = UNRECORDED.get(name, new), " (before this was recorded)"
        if old != new:
            parts.append(f"{name} {_shown(old)}{note} -> {_shown(new)}")
    return parts


def reason_beyond_comparison(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Why lost steps cannot be compared: which facts have changed since, or which are not known of the launch that took them."""
    if changes := fact_changes(before, now):
        return f"changed since they were taken: {_listed(changes)}"
    unknown = [name for name, value in now.items() if value is not None and name not in before]
    return f"what the launch that took them wrote down has not changed; it did not write down: {_listed(unknown)}"


def remember_facts(folder: Path, replay_key: str, facts: Mapping[str, Any]) -> None:
    """Writes down in a run's folder what a key stands for, once; raises OSError."""
    if replay_key not in read_facts(folder):
        files.append_line(folder / FACTS, json.dumps({"replay_key": replay_key, "facts": dict(facts)}))


def read_facts(folder: Path) -> dict[str, dict[str, Any]]:
    """What each key of a run stands for; lines that a crash or a disk damaged are left out."""
    try:
        lines = (folder / FACTS).read_bytes().split(b"\n")
    except FileNotFoundError:
        return {}
    found = [entry for line in lines if (entry := _parse(line)) is not None]
    return {entry["replay_key"]: entry["facts"] for entry in found}


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        content = json.loads(line)
    except ValueError:
        return None
    if not isinstance(content, dict) or not isinstance(content.get("replay_key"), str):
        return None
    return content if isinstance(content.get("facts"), dict) else None


def _listed(words: list[str]) -> str:
    more = f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN else ""
    return f"{', '.join(words[:_SHOWN])}{more}"


def _shown(value: Any) -> str:
    """A value in a few characters; of a digest, its beginning."""
    as_json = json.dumps(value, sort_keys=True, default=str)
    text = value if isinstance(value, str) else "none" if value is None else as_json
    return text if len(text) <= 40 else f"{text[:12]}..."
