"""metrics.jsonl: one JSON object a step, appended in the order of the steps.

When a resume goes back to an earlier step, the records after it move to metrics.lost.jsonl: no step stands twice in the
curve, and what was lost is what the replay is compared with. Trackers are drawings of this file (drawing.py).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer import files

CURVE = "metrics.jsonl"
LOST = "metrics.lost.jsonl"

_BLOCK_BYTES = 1 << 20


def read_records(path: Path) -> list[dict[str, Any]]:
    """Every whole record of a curve; a line that is damaged or that a crash cut short is left out. An absent file has none."""
    return [record for _, record in records_from(path, 0)]


def records_from(path: Path, position: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """(byte after the record, record) of every whole line that begins at a byte or later; a damaged one is left out, those after it count."""
    if not path.is_file():
        return
    with open(path, "rb") as file:
        file.seek(position)
        for line in file:
            position += len(line)
            record = _record(line)
            if record is not None:
                yield position, record


def end_of_step(path: Path, step: int) -> int:
    """The byte after the last record of `step` or an earlier one; 0 when there is none.

    The file is read from its end: a resume into a run of millions of steps reads the last few.
    """
    if not path.is_file():
        return 0
    with open(path, "rb") as file:
        begin, tail = file.seek(0, 2), b""
        while begin:
            length = min(_BLOCK_BYTES, begin)
            begin -= length
            file.seek(begin)
            tail = file.read(length) + tail
            # The first line of a block may begin before it: it is read with the block before.
            first = tail.find(b"\n") + 1 if begin else 0
            if begin and not first:
                continue
            if end := _last_end(tail[first:], step):
                return begin + first + end
            tail = tail[:first]
    return 0


def _last_end(lines: bytes, step: int) -> int:
    """The byte after the last record of `step` or an earlier one in these lines; 0 when there is none."""
    *whole, unfinished = lines.split(b"\n")
    end = len(lines) - len(unfinished)
    for line in reversed(whole):
        record = _record(line + b"\n")
        if record is not None and record["step"] <= step:
            return end
        end -= len(line) + 1
    return 0


def _record(line: bytes) -> dict[str, Any] | None:
    """The record that a line holds; None for one that is damaged or not whole."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


def cut_after(folder: Path, step: int) -> int:
    """Moves the records after `step` (and a line cut short) from the curve to the lost ones; returns how many moved.

    The lost ones are durable before the curve is cut: a crash between the two moves them once more, and loses none.
    """
    curve = folder / CURVE
    if not curve.is_file():
        return 0
    keep_bytes = end_of_step(curve, step)
    lost = [json.dumps(record) for _, record in records_from(curve, keep_bytes)]
    if lost:
        files.append_lines(folder / LOST, lost)
    if keep_bytes != curve.stat().st_size:
        files.truncate_file(curve, keep_bytes)
    return len(lost)


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
