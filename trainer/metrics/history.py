"""Keeps TensorBoard's files of a run small: its last steps are drawn one by one, and what is before them thinned.

A run draws every step into a file that ends with `.recent`. Once there are more than KEPT_STEPS + ROUND_STEPS in it, a new one is begun
with the last KEPT_STEPS, those before them are added to the file that ends with `.history` as thinning.py draws them, and the old file goes.
Texts and histograms move as they are. Whoever reads at any instant, or after a crash at any, finds each step once: a file begins by taking
back what was drawn of its steps before, and how far the history counts is written down when it is on the disk.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event

from trainer import files
from trainer.metrics.curves import CURVE, end_of_step, records_from
from trainer.metrics.event_files import BoardWriter, EventFile, event_files, events_of_file, scalars, start_of_session
from trainer.metrics.thinning import Point, Thinning, width

KEPT_STEPS, ROUND_STEPS = 2_000, 10_000
"""Steps at the end that are always there one by one, and how many more there may be until they are thinned."""

STATE = ".thinned-tensorboard"
_HISTORY = ".history"


@dataclass(frozen=True)
class _State:
    """How far the history counts."""

    file: str
    num_bytes: int
    step: int
    """The last that it has."""
    recent: str
    """The file in which the steps after it are; those begun before it are done with."""


@dataclass(frozen=True)
class _Recent:
    """What stands in the files of the last steps."""

    first_step: int
    """What was drawn before of this step and later does not count."""
    extras: list[Event]
    """What is no plain number."""
    steps: list[Event]
    """The numbers."""


class History:
    """The thinned part of a run's curve in TensorBoard."""

    def __init__(self, folder: Path, name: Callable[[str], str] = str) -> None:
        """Finishes what a crash left half done. `name` gives the name that a tag has in this run's charts."""
        self._folder, self._name = folder, name
        self._state = _read_state(folder / STATE)
        if self._state is None:
            return
        history = folder / self._state.file
        if history.is_file() and history.stat().st_size > self._state.num_bytes:
            files.truncate_file(history, self._state.num_bytes)
        self._remove_recent_before(self._state.recent)

    def is_due(self, step: int) -> bool:
        """Whether there is something to thin once this step was drawn."""
        since = self._state.step if self._state and self._state.step < step else 0
        return step - since > KEPT_STEPS + ROUND_STEPS and width(step - KEPT_STEPS) > 1

    def thin(self, writer: BoardWriter, last_step: int) -> None:
        """Moves all but the last steps into the history; raises OSError, and then everything is there still."""
        writer.flush()
        found = _read_recent(self._recent_files())
        before = found.first_step - 1 if self._state is None else min(self._state.step, found.first_step - 1)
        points, thinned_to = _thinned(self._folder / CURVE, before, last_step - KEPT_STEPS)
        if not points:
            return
        history = self._history_file()
        later = [event for event in (*found.extras, *found.steps) if event.step > thinned_to]
        writer.go_on_in_new_file([start_of_session(thinned_to + 1), *later])
        if self._state is not None and history.is_file():
            files.truncate_file(history, self._state.num_bytes)
        points = [(step, {self._name(tag): value for tag, value in values.items()}) for step, values in points]
        num_bytes = _add_to_history(history, found, points, thinned_to)
        self._state = _State(history.name, num_bytes, thinned_to, writer.file.path.name)
        files.write_atomic(self._folder / STATE, json.dumps(asdict(self._state)))
        self._remove_recent_before(self._state.recent)

    def _history_file(self) -> Path:
        """The history; its name is that of the first file of the last steps but for the end, by which it is read before that."""
        if self._state is not None and (self._folder / self._state.file).is_file():
            return self._folder / self._state.file
        first = self._recent_files()[0]
        return first.with_name(f"{first.name.removesuffix(BoardWriter.suffix)}{_HISTORY}")

    def _recent_files(self) -> list[Path]:
        return [path for path in event_files(self._folder) if path.name.endswith(BoardWriter.suffix)]

    def _remove_recent_before(self, name: str) -> None:
        for path in self._recent_files():
            if path.name < name:
                path.unlink()


def _read_state(path: Path) -> _State | None:
    try:
        return _State(**json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _read_recent(paths: Iterable[Path]) -> _Recent:
    """What counts in these files, one after the other: a start of a session takes back what was before it from its step on."""
    first: int | None = None
    extras: list[Event] = []
    steps: list[Event] = []
    for event in (event for path in paths for event in events_of_file(path)):
        if event.HasField("session_log"):
            first = event.step if first is None else min(first, event.step)
            extras, steps = ([each for each in kept if each.step < event.step] for kept in (extras, steps))
        elif event.HasField("summary"):
            are_scalars = all(value.HasField("simple_value") for value in event.summary.value)
            (steps if are_scalars else extras).append(event)
    return _Recent(first or 0, extras, steps)


def _thinned(curve: Path, before: int, last: int) -> tuple[list[Point], int]:
    """(points of the steps after `before` and up to `last` as far as they are whole, the last step of those)."""
    thinning, points, whole, thinned_to, step = Thinning(), [], 0, before, before
    for _, record in records_from(curve, end_of_step(curve, before)):
        if record["step"] > step and thinning.is_over(record["step"]):
            points += thinning.flush()
            whole, thinned_to = len(points), step
        step = record["step"]
        if step > last:
            break
        points += thinning.add(record)
    return points[:whole], thinned_to


def _add_to_history(path: Path, found: _Recent, points: Iterable[Point], thinned_to: int) -> int:
    """Adds what moves, with the time at which it was drawn, and waits until it is on the disk; returns the bytes that it has then."""
    drawn_at = {event.step: event.wall_time for event in found.steps}
    history = EventFile(path, is_new=not path.is_file())
    try:
        if found.first_step <= thinned_to:
            history.add_event(start_of_session(found.first_step))
        for event in found.extras:
            if event.step <= thinned_to:
                history.add_event(event)
        for step, values in points:
            event = scalars(step, values)
            event.wall_time = drawn_at.get(step, 0.0)
            history.add_event(event)
        history.sync()
        return history.num_bytes
    finally:
        history.drop()
