"""What the verifications of a run's checkpoints found, remembered beside them: one JSON object a line, the last of a checkpoint counts.

A verification reads gigabytes, so a listing shows the last one instead. The record is only ever a help: a line that cannot be read is
left out, and a checkpoint whose files should be others by now has none.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from trainer import files
from trainer.checkpoint.format.manifest import Manifest

RECORD = ".verified.jsonl"


@dataclass(frozen=True)
class Verification:
    """When every byte of a checkpoint was read, and what was wrong then."""

    when: datetime
    problems: tuple[str, ...]

    @property
    def age_seconds(self) -> float:
        return (datetime.now(UTC) - self.when).total_seconds()


Verifications = Mapping[tuple[int, str], Verification]
"""By step and `Manifest.content_digest`."""


def remember(folder: Path, manifest: Manifest, problems: Sequence[str]) -> None:
    """Writes down, durably, what was wrong with a checkpoint in a folder: nothing when it was sound."""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    found = {"step": manifest.step, "digest": manifest.content_digest, "when": when, "problems": list(problems)}
    files.append_lines(folder / RECORD, [json.dumps(found)])


def last_verifications(folder: Path) -> Verifications:
    """The last verification of each checkpoint; what cannot be read is left out."""
    try:
        lines = (folder / RECORD).read_bytes().splitlines()
    except OSError:
        return {}
    return dict(pair for line in lines if (pair := _parse(line)) is not None)


def last_verification(manifest: Manifest, verifications: Verifications) -> Verification | None:
    """The last verification of this checkpoint as it is now."""
    return verifications.get((manifest.step, manifest.content_digest))


def found_damaged(manifest: Manifest, verifications: Verifications) -> bool:
    """Whether the last verification of this checkpoint found something wrong."""
    last = last_verification(manifest, verifications)
    return last is not None and bool(last.problems)


def _parse(line: bytes) -> tuple[tuple[int, str], Verification] | None:
    try:
        content = json.loads(line)
        step, digest, when, problems = (content[key] for key in ("step", "digest", "when", "problems"))
        moment = datetime.fromisoformat(when)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    is_whole = isinstance(step, int) and isinstance(digest, str) and isinstance(problems, list) and moment.tzinfo
    return ((step, digest), Verification(moment, tuple(map(str, problems)))) if is_whole else None
