"""metrics.jsonl: one JSON object a step, appended in the order of the steps.

When a resume goes back to an earlier step, the records after it move to metrics.lost.jsonl: no step stands twice in the
curve, and what was lost is what the replay is compared with.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer import files

CURVE = "metrics.jsonl"
LOST = "metrics.lost.jsonl"


def read_records(path: Path) -> list[dict[str, Any]]:
    """Every whole record of a curve; a line that is damaged or that a crash cut short is left out. An absent file has none."""
    return [record for _, record in _records(path)]


def cut_after(folder: Path, step: int) -> int:
    """Moves the records after `step` (and a line cut short) from the curve to the lost ones; returns how many moved.

    The lost ones are durable before the curve is cut: a crash between the two moves them once more, and loses none.
    """
    curve = folder / CURVE
    if not curve.is_file():
        return 0
    keep_bytes = 0
    lost: list[str] = []
    for end, record in _records(curve):
        if not lost and record["step"] <= step:
            keep_bytes = end
        else:
            lost.append(json.dumps(record))
    if lost:
        files.append_lines(folder / LOST, lost)
    if keep_bytes != curve.stat().st_size:
        files.truncate_file(curve, keep_bytes)
    return len(lost)


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(byte after the record, record) of every whole line; a damaged one is left out, and those after it still count."""
    if not path.is_file():
        return
    position = 0
    with open(path, "rb") as file:
        for line in file:
            position += len(line)
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if line.endswith(b"\n") and isinstance(record, dict) and isinstance(record.get("step"), int):
                yield position, record


class Curve:
    """The open metrics.jsonl of a running run."""

    def __init__(self, folder: Path) -> None:
        self._file = open(folder / CURVE, "ab", buffering=0)
        self._unwritten = b""

    def append(self, record: dict[str, Any]) -> None:
        """Writes one record; it survives the end of this process at once, and of the machine after `sync`.

        raises OSError when the disk is full; what could not be written is kept and written with the next record
        """
        self._unwritten += (json.dumps(record) + "\n").encode()
        self._write()

    def sync(self) -> None:
        """Waits until everything appended is on the disk."""
        files.fsync_open_file(self._file)

    def close(self) -> None:
        """Writes what was kept, and closes the file; raises OSError when the disk is full still."""
        try:
            self._write()
        finally:
            self._file.close()

    def _write(self) -> None:
        while self._unwritten:
            self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
