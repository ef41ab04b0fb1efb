"""Replayed steps against what was written of them before: the proof that a resume was exact.

A run killed at step 87 and resumed at 50 takes the steps 51 to 87 again. Their losses, gradient norms and data must be the
same to the last bit, and all of that was written down the first time.
"""

from collections.abc import Iterable
from typing import Any

COMPARED = ("data_digest", "loss", "grad_norm")


class ReplayProof:
    """Compares steps as they come with those that were lost, and says the verdict once."""

    def __init__(self, lost: Iterable[dict[str, Any]], resumed_step: int, replay_key: str) -> None:
        """`replay_key` names everything that must be equal for a bit-exact replay; other records are not compared."""
        later = [record for record in lost if record["step"] > resumed_step and "loss" in record]
        self._expected = {record["step"]: record for record in later if record.get("replay_key") == replay_key}
        self._other = len({record["step"] for record in later} - self._expected.keys())
        self._last = max(self._expected, default=None)
        self._compared = 0

    @property
    def announcement(self) -> str | None:
        """What will be compared, said at the start; None when nothing was lost."""
        if self._expected:
            return f"{len(self._expected)} steps are taken again and compared with what was written of them before"
        if self._other:
            return f"{self._other} lost steps cannot be compared: settings, versions or processes are not those they ran with"
        return None

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
            cause = f"the data is the same and {self._compared} steps agreed: moments or random state, or a kernel that is not deterministic"
        return f"at step {record['step']} {values} ({cause})"
