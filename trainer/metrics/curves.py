"""metrics.jsonl: one JSON object a step, appended in the order of the steps.

When a resume goes back to an earlier step, the records after it move to metrics.lost.jsonl: no step stands twice in the
curve, and what was lost is what the replay is compared with. Trackers are drawings of this file (drawing.py).

A month of short steps has fifteen million records. So what reads here takes the end (`end_of_step`, `last_record`) or one record after
another, and whoever wants to know of all of them takes the index (index.py). What is the same in record after record is written now and
then: the `replay_key` stands where it changes and in every KEY_EVERY_RECORDS-th record; each of the others has the one before it.
"""

import json
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

from trainer import files
from trainer.aliases import rename_tags

CURVE = "metrics.jsonl"
LOST = "metrics.lost.jsonl"

KEY_EVERY_RECORDS = 256
"""Greatest number of records from one that has its `replay_key` to the next."""

MAX_COMPARED = 50_000
"""Lost steps after a resume that are compared with their replay; what was lost beyond is kept, and read by nobody."""

LAST_BYTES = 1 << 20
"""Of a curve's end, in which something is looked for that not every record has: a few thousand steps."""

_SEPARATORS = (",", ":")
BLOCK_BYTES = 1 << 20
_LONGEST_LINE_BYTES = 1 << 24
SCANNED_BYTES = 1 << 16
"""Of a curve in which a step is looked for, what is read from one end to the other."""
_LOST_BYTES = 1 << 24
"""How far back the lost records of earlier resumes are looked through."""


def read_records(path: Path) -> list[dict[str, Any]]:
    """Every whole record of a curve; a line that is damaged or that a crash cut short is left out. An absent file has none."""
    return [record for _, record in records_from(path, 0)]


def records_from(path: Path, position: int, stop: int | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """(byte after the record, record) of every whole line that begins at a byte or later, and before `stop`; a damaged one is left out."""
    if (stop is not None and position >= stop) or not path.is_file():
        return
    with open(path, "rb") as file:
        file.seek(position)
        for line in file:
            position += len(line)
            record = _record(line)
            if record is not None:
                yield position, record
            if stop is not None and position >= stop:
                return


def records_backward(path: Path, end: int | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """(byte after the record, record) of every whole line up to byte `end` or the file's, the last first; only what is asked for is read."""
    if not path.is_file():
        return
    for position, line in lines_backward(path, end):
        record = _record(line)
        if record is not None:
            yield position, record


def end_of_step(path: Path, step: int) -> int:
    """The byte after the last record of `step` or an earlier one; 0 when there is none. Looked for from the end, in ever wider parts."""
    if not path.is_file():
        return 0
    with open(path, "rb") as file:
        found = _end_near_step(file, step)
    for end, record in records_from(path, found):
        if record["step"] > step:
            break
        found = end
    return found


def _end_near_step(file: BinaryIO, step: int) -> int:
    """0, or the byte after some record of `step` or an earlier one; between it and later ones are SCANNED_BYTES at most."""
    low, high, width = 0, file.seek(0, 2), SCANNED_BYTES
    while high - low > SCANNED_BYTES:
        middle = (low + high) // 2 if low else max(0, high - width)
        end, found = _first_record(file, middle, high)
        if found is None or found > step:
            high, width = middle, 2 * width
        else:
            low = end
    return low


def _first_record(file: BinaryIO, position: int, stop: int) -> tuple[int, int | None]:
    """(byte after it, step) of the first whole record that begins at a byte or later, and before `stop`; the step is None where none does."""
    if position:
        file.seek(position - 1)
        while (piece := file.readline(SCANNED_BYTES)) and not piece.endswith(b"\n"):
            pass
    else:
        file.seek(0)
    position = file.tell()
    while position < stop and (line := file.readline(_LONGEST_LINE_BYTES)):
        position += len(line)
        if (record := _record(line)) is not None:
            return position, record["step"]
    return stop, None


def last_record(path: Path) -> dict[str, Any] | None:
    """The last whole record; None where there is none. Read from the end of the file."""
    return next((record for _, record in records_backward(path)), None)


def last_records(path: Path, num_bytes: int = LAST_BYTES) -> list[dict[str, Any]]:
    """The whole records among the last so many bytes of a curve, the last first."""
    begin = max(0, path.stat().st_size - num_bytes) if path.is_file() else 0
    return [record for _, record in records_from(path, begin)][::-1]


def newest_value(records: Iterable[dict[str, Any]], key: str) -> Any:
    """Of records, the last first, the newest value under a key that not every one has; None where none has it."""
    return next((record[key] for record in records if record.get(key) is not None), None)


def lines_backward(path: Path, end: int | None) -> Iterator[tuple[int, bytes]]:
    """(byte after the line, line) of the whole lines of a file up to a byte, the last first."""
    with open(path, "rb") as file:
        begin, tail = file.seek(0, 2), b""
        begin = begin if end is None else min(begin, end)
        while begin:
            length = min(BLOCK_BYTES, begin)
            begin -= length
            file.seek(begin)
            tail = file.read(length) + tail
            # The first line of a block may begin before it: it is read with the block before.
            first = tail.find(b"\n") + 1 if begin else 0
            if begin and not first:
                tail = tail if len(tail) < _LONGEST_LINE_BYTES else b""  # no record: a disk that lost power left a hole
                continue
            *whole, unfinished = tail[first:].split(b"\n")
            line_end = begin + len(tail) - len(unfinished)
            for line in reversed(whole):
                yield line_end, line + b"\n"
                line_end -= len(line) + 1
            tail = tail[:first]


def _record(line: bytes) -> dict[str, Any] | None:
    """The record that a line holds; None for one that is damaged or not whole."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return rename_tags(record) if isinstance(record, dict) and isinstance(record.get("step"), int) else None


def cut_after(folder: Path, step: int) -> int:
    """Moves the records after `step` (and a line cut short) from the curve to the lost ones; returns how many moved.

    The lost ones are durable before the curve is cut: a crash between the two moves them once more, and loses none.
    """
    curve = folder / CURVE
    if not curve.is_file():
        return 0
    keep_bytes, num_moved = end_of_step(curve, step), 0

    def moved() -> Iterator[str]:
        nonlocal num_moved
        for record in _with_keys((record for _, record in records_from(curve, keep_bytes)), _key_at(curve, keep_bytes)):
            num_moved += 1
            yield json.dumps(record, separators=_SEPARATORS)

    lines = moved()
    if first := next(lines, None):
        files.append_lines(folder / LOST, chain((first,), lines))
    if keep_bytes != curve.stat().st_size:
        files.truncate_file(curve, keep_bytes)
    return num_moved


def _key_at(curve: Path, position: int) -> str | None:
    """The replay key that holds at a byte of a curve; None where no record before it has one."""
    before = (record for _, record in records_backward(curve, position) if "loss" in record)
    # Records of earlier versions have it each or never: those that can be carried over stand not far back.
    nearest = islice(before, 2 * KEY_EVERY_RECORDS)
    return next((record["replay_key"] for record in nearest if "replay_key" in record), None)


def _with_keys(records: Iterable[dict[str, Any]], key: str | None) -> Iterator[dict[str, Any]]:
    """The records of successive steps, each with its own replay key; `key` holds before the first."""
    for record in records:
        key = record.get("replay_key", key)
        yield {**record, "replay_key": key} if key is not None and "loss" in record else record


def lost_records(folder: Path, resumed_step: int, newest_at: int) -> Iterator[dict[str, Any]]:
    """Of the lost steps those that a resume replays first, in the order in which they were lost; bounded, however many were.

    newest_at  the byte of the lost records at which those begin that this resume has moved
    """
    wanted = range(resumed_step + 1, resumed_step + MAX_COMPARED + 1)
    for end, record in records_from(folder / LOST, max(0, newest_at - _LOST_BYTES)):
        if record["step"] in wanted and "loss" in record:
            yield record
        elif end > newest_at and record["step"] >= wanted.stop:
            return


def lost_since(folder: Path, position: int) -> dict[str, float]:
    """What was lost from a byte of the lost records on: steps, and seconds of training (of steps and evaluations)."""
    num_steps, seconds = 0, 0.0
    for _, record in records_from(folder / LOST, position):
        num_steps += "loss" in record
        seconds += record.get("step_seconds" if "loss" in record else "seconds") or 0.0
    return {"lost_steps": num_steps, "lost_seconds": round(seconds, 3)}


class Curve:
    """The open metrics.jsonl of a running run."""

    def __init__(self, folder: Path) -> None:
        self._file = open(folder / CURVE, "ab", buffering=0)
        self._unwritten = b""
        self._key: str | None = None
        self._num_without_key = 0

    def append(self, record: dict[str, Any]) -> None:
        """Writes one record; it survives the end of this process at once, and of the machine after `sync`.

        raises OSError when the disk is full; what could not be written is kept and written with the next record
        """
        self._unwritten += (json.dumps(self._without_known_key(record), separators=_SEPARATORS) + "\n").encode()
        self._write()

    def _without_known_key(self, record: dict[str, Any]) -> dict[str, Any]:
        """The record without a replay key that a record shortly before it has."""
        if "replay_key" not in record:
            return record
        key, self._num_without_key = record["replay_key"], self._num_without_key + 1
        if key != self._key or self._num_without_key >= KEY_EVERY_RECORDS:
            self._key, self._num_without_key = key, 0
            return record
        return {name: value for name, value in record.items() if name != "replay_key"}

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
