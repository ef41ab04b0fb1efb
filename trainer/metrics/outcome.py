"""outcome.json: how a run ended, or that it is running. Written in one step, so that a reader never sees half of it."""

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainer import files

OUTCOME = "outcome.json"

EXIT_CODES = {"finished": 0, "interrupted": 75, "diverged": 3, "failed": 1, "refused": 2, "running": 1}
"""Exit code of `./launch.sh` for each outcome; 75 (EX_TEMPFAIL) asks a scheduler to queue the run again. A run that is still
`running` after its processes are gone was killed."""


def write_outcome(folder: Path, outcome: str, *, step: int, reason: str, **facts: Any) -> None:
    """Records the state of a run: one of EXIT_CODES, the step it stands at, and the reason as a sentence."""
    assert outcome in EXIT_CODES, outcome
    content = {
        "outcome": outcome,
        "step": step,
        "reason": reason,
        "exit_code": EXIT_CODES[outcome],
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        **{name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in facts.items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    files.write_atomic(folder / OUTCOME, json.dumps(content, indent=1) + "\n")


def read_outcome(folder: Path) -> dict[str, Any] | None:
    """What a run's outcome.json says; None when there is none, or a damaged one, which says nothing."""
    try:
        content = json.loads((folder / OUTCOME).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) and content.get("outcome") in EXIT_CODES else None
