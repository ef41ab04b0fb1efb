"""outcome.json: how a run ended, or that it is running, and at which step. Written in one step, so that a reader never sees half of it.

While a run is trained only the digits of its step change, in place: that needs no room on the disk, and waits for none.
"""

import json
import math
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from trainer import files
from trainer.ending.outcomes import ENDED, Outcome

OUTCOME = "outcome.json"

_LOSSES = ("loss", "val_loss", "last_val_loss", "last_val_step")
_FACTS = (*_LOSSES, "sample", "exported", "exported_step", "untidy", "planned_steps")

_STEP = '"step": '
_STEP_DIGITS = 12


def write_outcome(folder: Path, outcome: Outcome | str, *, step: int, reason: str, **facts: Any) -> None:
    """Records the state of a run, the step it stands at, and the reason as a clause."""
    outcome = Outcome(outcome)
    ending = {"outcome": outcome, "step": step, "reason": reason, "exit_code": outcome.exit_code, "time": _now()}
    numberless = {name for name, value in facts.items() if isinstance(value, float) and not math.isfinite(value)}
    _write(folder, {**ending, **facts, **dict.fromkeys(numberless)})


class RunningOutcome:
    """The outcome of a run that is being trained, on the process that writes it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: BinaryIO | None = None
        self._place = 0

    def step_taken(self, step: int) -> None:
        """Says the step that the run is at; at the first, what held of the step before goes. raises OSError"""
        if self._file is None:
            write_outcome(self._folder, Outcome.RUNNING, step=step, reason="training", pid=os.getpid())
            self._file = open(self._folder / OUTCOME, "r+b", buffering=0)
            self._place = self._file.read().index(_STEP.encode()) + len(_STEP)
        else:
            os.pwrite(self._file.fileno(), f"{step:{_STEP_DIGITS}}".encode(), self._place)

    def close(self) -> None:
        """Leaves it as it is."""
        if self._file is not None:
            self._file.close()


def write_refusal(folder: Path, before: dict[str, Any] | None, reason: str) -> None:
    """Records a start that was refused: beside how the launch before it ended, or as the outcome where none had ended."""
    if before and before["outcome"] in ENDED:
        attempt = {"outcome": Outcome.REFUSED, "reason": reason, "time": _now(), "pid": os.getpid()}
        _write(folder, {**before, "last_attempt": attempt})
        return
    step = before["step"] if before else 0
    write_outcome(folder, Outcome.REFUSED, step=step, reason=reason, **facts_at(before, step), pid=os.getpid())


def facts_at(before: dict[str, Any] | None, step: int) -> dict[str, Any]:
    """What an earlier outcome says that still holds at `step`: its losses, its sample and its export are those of its own step."""
    if before is None or before["step"] != step:
        return {}
    return {key: before[key] for key in _FACTS if key in before}


def read_outcome(folder: Path) -> dict[str, Any] | None:
    """What a run's outcome.json says; None when there is none, or a damaged one, which says nothing."""
    try:
        content = json.loads((folder / OUTCOME).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    if not isinstance(content, dict) or not isinstance(content.get("step"), int):
        return None
    outcome = next((known for known in Outcome if known == content.get("outcome")), None)
    return {**content, "outcome": outcome} if outcome else None


def what_it_said(before: dict[str, Any] | None, after: dict[str, Any] | None) -> dict[str, Any] | None:
    """What the launch in between left: its outcome, or its refusal beside an earlier one; None when it said nothing."""
    if after is None or after == before:
        return None
    attempt = after.get("last_attempt")
    return attempt if attempt and attempt != (before or {}).get("last_attempt") else after


def exit_code(launcher_code: int, outcome: dict[str, Any] | None) -> int:
    """The run's own code from its outcome; the launcher's failure where the run left none."""
    if outcome is None:
        return launcher_code if launcher_code > 0 else 1
    if outcome["outcome"] == Outcome.RUNNING and launcher_code == 0:
        return 0  # every process finished; only the disk had no room to say so
    return Outcome(outcome["outcome"]).exit_code


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _write(folder: Path, content: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1) + "\n"
    if content["outcome"] == Outcome.RUNNING:  # room for the steps to come
        text = text.replace(f"{_STEP}{content['step']}", f"{_STEP}{content['step']:{_STEP_DIGITS}}", 1)
    files.write_atomic(folder / OUTCOME, text)
