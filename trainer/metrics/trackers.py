"""Accelerate's trackers, TensorBoard first, each a drawing of metrics.jsonl that may lag, fail and catch up.

What a tracker has drawn is remembered in bytes of the curve, in `runs/NAME/.drawn-TRACKER`. A launch that was killed between writing a
step and drawing it, or a tracker that failed for an hour, costs no point: the next draw begins where the last one came to.
"""

import logging
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

from trainer.aliases import former_tag
from trainer.errors import ConfigError, TrainerError
from trainer.metrics.curves import CURVE, end_of_step, records_from
from trainer.metrics.event_files import BoardTracker, BoardWriter
from trainer.metrics.history import History
from trainer.metrics.tags import drawn
from trainer.metrics.thinning import Point, Thinning
from trainer.text import did_you_mean, one_line

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 600.0
"""How long a tracker that failed is left alone; each further failure doubles it."""

_NEW_NAMES = " 2"
"""The end of a mark: the tags drawn have today's names. The marks of earlier versions end before it."""
_FORMER_MARK_BYTES = 21

_AT_ONCE = 256
"""Records that TensorBoard is given at once; the place is remembered after them."""


def check_tracker_names(names: list[str]) -> None:
    """Refuses a tracker that Accelerate does not know, one that it would leave out silently for want of its package, and one named twice."""
    known = sorted(str(name) for name in LOGGER_TYPE_TO_CLASS)
    installed = {str(name) for name in get_available_trackers()}
    problems = [
        f"metrics.trackers: unknown tracker {name!r}; {did_you_mean(name, known)}"
        if name not in known
        else f"metrics.trackers: {name!r} needs its package, which is not installed; install it ({sys.executable} -m pip install {name}), or leave it out"
        for name in dict.fromkeys(names)
        if name not in installed
    ]
    twice = dict.fromkeys(name for name in names if names.count(name) > 1)
    problems += [
        f"metrics.trackers names {name!r} twice, and each number would be drawn twice; name it once" for name in twice
    ]
    if problems:
        raise ConfigError(*problems)


def open_trackers(
    accelerator: Accelerator,
    names: list[str],
    name: str,
    folder: Path,
    settings: dict[str, Any],
    resumed_step: int | None,
    options: dict[str, dict[str, Any]] | None = None,
) -> list["PatientTracker"]:
    """Opens the trackers that the Accelerator was made with; the main process has some. The curve has been cut to the resumed step before.

    options  what each tracker's own opening call is given, by the tracker's name
    raises   TrainerError when a tracker cannot be opened; on a resume that is logged, and the run goes on without it

    A resumed run goes on in the same TensorBoard folder, and in the same run of trackers that know such a thing.
    """
    if not accelerator.is_main_process:
        return []
    for other in (options or {}).keys() - set(names):
        log.warning(
            "metrics.tracker_options: %r is not among metrics.trackers, so its options count for nothing", other
        )
    opened = []
    for tracker_name in names:
        position, purge_step = begin_of_drawing(folder, tracker_name, resumed_step)
        keywords = {**opening(tracker_name, name, folder, purge_step), **(options or {}).get(tracker_name, {})}
        try:
            tracker = _open(accelerator, tracker_name, name, keywords)
            if tracker_name != "tensorboard":
                _show_settings(tracker, settings, is_new=position == 0)
        except Exception as error:
            problem = f"the tracker {tracker_name} could not be opened: {type(error).__name__}: {error}"
            if resumed_step is None:
                raise TrainerError(f"{problem}; fix that, or take it out of metrics.trackers") from error
            log.warning("%s; the run goes on without it, and the next start draws what it missed", problem)
            continue
        kind = BoardPatience if isinstance(tracker, BoardTracker) else PatientTracker
        opened.append(kind(tracker, folder, position))
    accelerator.trackers, accelerator.log_with = [patient.tracker for patient in opened], names
    return opened


def _show_settings(tracker: GeneralTracker, settings: dict[str, Any], *, is_new: bool) -> None:
    """Gives a tracker this launch's settings; one that lets no setting of its run change keeps the earlier ones, and that is logged."""
    try:
        tracker.store_init_configuration({key: plain(value) for key, value in settings.items()})
    except Exception as error:
        if is_new:
            raise
        log.warning("%s shows the settings of an earlier launch: %s", tracker.name, one_line(error))


def opening(tracker_name: str, name: str, folder: Path, purge_step: int) -> dict[str, Any]:
    """What a tracker's own opening call is given: the same run after a resume, and the run's folder for the files that it would leave where one stands."""
    same_run = {"name": name, "resume": "allow"}
    settings: dict[str, dict[str, Any]] = {
        "tensorboard": {"purge_step": purge_step},
        "wandb": {"id": name, "dir": str(folder), **same_run},
        "trackio": same_run,
        "dvclive": {"dir": str(folder / "dvclive")},
        "swanlab": {"logdir": str(folder / "swanlog")},
    }
    return settings.get(tracker_name, {})


def _open(accelerator: Accelerator, tracker_name: str, run_name: str, keywords: dict[str, Any]) -> GeneralTracker:
    """Opens one of Accelerate's trackers; one that fails takes no other with it."""
    is_board = tracker_name == BoardTracker.name
    accelerator.trackers = []
    accelerator.log_with = [BoardTracker(run_name, accelerator.logging_dir, **keywords) if is_board else tracker_name]
    accelerator.init_trackers(run_name, config=None, init_kwargs={tracker_name: keywords})
    (tracker,) = accelerator.trackers
    return tracker


def begin_of_drawing(folder: Path, tracker_name: str, resumed_step: int | None) -> tuple[int, int]:
    """(byte of the curve from which a tracker draws, step from which what it drew before is forgotten).

    Where the last launch was killed amid a step's numbers, that step is forgotten and drawn again whole, so nothing stands twice.
    """
    if resumed_step is None:
        return 0, 0
    curve = folder / CURVE
    size = curve.stat().st_size if curve.is_file() else 0
    mark = _mark(folder, tracker_name)
    try:
        position = min(int(mark.read_text().split()[0]), size)
    except (FileNotFoundError, ValueError, IndexError):  # it has not drawn this run yet, or nobody knows how far
        position = 0
    undrawn = next((record["step"] for _, record in records_from(curve, position)), None)
    if undrawn is None:
        return size, resumed_step + 1
    position = end_of_step(curve, undrawn - 1)
    return position, undrawn if position else 0


def _mark(folder: Path, tracker_name: str) -> Path:
    return folder / f".drawn-{tracker_name}"


def naming(folder: Path, tracker_name: str) -> Callable[[str], str]:
    """What gives a tag its name in a tracker of this run: the former one where an earlier version began to draw there."""
    mark = _mark(folder, tracker_name)
    is_former = mark.is_file() and mark.stat().st_size == _FORMER_MARK_BYTES
    return former_tag if is_former else str


class PatientTracker:
    """A tracker that may fail: it is left alone for a while, longer after each failure, and then draws what it missed.

    It draws the curve as thinning.py thins it.
    """

    def __init__(self, tracker: GeneralTracker, folder: Path, position: int) -> None:
        """`position` is the byte of the curve in `folder` that it draws from; at 0 it `begins`, and knows nothing of the run yet."""
        self.tracker = tracker
        self._curve, self._position = folder / CURVE, position
        self.begins = position == 0
        self._thinning, self._taken = Thinning(), position
        self._pause_seconds = 0.0
        self._retry_at = 0.0
        self.name_of_tag = naming(folder, self.name) if position else str
        if self.name_of_tag is former_tag:
            log.info(
                "%s goes on with the names that this run's charts began with: loss/train, not Loss/train", self.name
            )
        self._mark = os.open(_mark(folder, self.name), os.O_WRONLY | os.O_CREAT, 0o644)
        self._remember()

    @property
    def name(self) -> str:
        return str(self.tracker.name)

    @property
    def writer(self) -> BoardWriter | None:
        """TensorBoard's own writer; None for other trackers."""
        return None

    @property
    def is_paused(self) -> bool:
        return time.monotonic() < self._retry_at

    def draw(self) -> None:
        """Draws what stands in the curve and is not drawn yet, unless it is paused; raises what the tracker raises."""
        if self.is_paused:
            return
        begin = self._position
        try:
            self._draw_on()
        finally:
            if self._position != begin:
                self._remember()

    def _draw_on(self) -> None:
        for end, record in records_from(self._curve, self._taken):
            if self._thinning.is_over(record["step"]):
                self._log(self._thinning.flush(), self._taken)
            points = self._thinning.add(record)
            self._taken = end
            if self._thinning.is_empty:
                self._log(points, end)

    def _log(self, points: list[Point], position: int) -> None:
        """Draws points, with which everything before this byte of the curve is drawn."""
        for step, values in points:
            self.attempt(step, partial(self._send, step, values))
        self._position = position

    def _send(self, step: int, values: dict[str, float]) -> None:
        self.tracker.log({self.name_of_tag(tag): value for tag, value in values.items()}, step=step)

    def attempt(self, step: int, write: Callable[[], None]) -> None:
        """Writes something of this step; after a failure, which is raised, it is paused."""
        try:
            write()
        except Exception:
            self._pause_seconds = min(max(FIRST_PAUSE_SECONDS, 2 * self._pause_seconds), LONGEST_PAUSE_SECONDS)
            self._retry_at = time.monotonic() + self._pause_seconds
            self._forget(step)
            raise
        if self._pause_seconds:
            log.info("%s is written again, and draws what it missed", self.name)
        self._pause_seconds = 0.0

    def close(self) -> None:
        """Ends the tracker, with what waited for more steps to become a point; raises what it raises."""
        try:
            if not self._thinning.is_empty:
                self._log(self._thinning.flush(), self._taken)
                self._remember()
        finally:
            os.close(self._mark)
            self.tracker.finish()

    def _remember(self) -> None:
        names = "" if self.name_of_tag is former_tag else _NEW_NAMES
        os.pwrite(self._mark, f"{self._position:020d}{names}\n".encode(), 0)

    def _forget(self, step: int) -> None:
        """What was not drawn is read again."""
        self._thinning, self._taken = Thinning(), self._position


class BoardPatience(PatientTracker):
    """TensorBoard, which can take back what it has drawn: it has the last steps one by one, and only what is before them thinned."""

    def __init__(self, tracker: BoardTracker, folder: Path, position: int) -> None:
        super().__init__(tracker, folder, position)
        self._history = History(folder, self.name_of_tag)

    @property
    def writer(self) -> BoardWriter:
        return self.tracker.writer

    def _draw_on(self) -> None:
        undrawn: list[tuple[int, dict[str, Any]]] = []
        for end, record in records_from(self._curve, self._position):
            undrawn.append((end, record))
            if len(undrawn) == _AT_ONCE:
                self._draw_records(undrawn)
                undrawn = []
        if undrawn:
            self._draw_records(undrawn)

    def _draw_records(self, undrawn: list[tuple[int, dict[str, Any]]]) -> None:
        first, last = undrawn[0][1]["step"], undrawn[-1][1]["step"]

        def write() -> None:
            for _, record in undrawn:
                self._send(record["step"], drawn(record))
            self.writer.flush()

        self.attempt(first, write)
        self._position = undrawn[-1][0]
        if self._history.is_due(last):
            self.attempt(last + 1, lambda: self._history.thin(self.writer, last))

    def _forget(self, step: int) -> None:
        """Lets go of the writer: the next call opens another file, which begins by forgetting what of this step and later was drawn."""
        self.writer.drop(step)
        self._position = end_of_step(self._curve, step - 1)


def plain(value: Any) -> int | float | str | bool:
    """A setting as a tracker can hold it."""
    return value if isinstance(value, (int, float, str, bool)) else str(value)
