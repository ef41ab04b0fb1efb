"""Accelerate's trackers, TensorBoard first: numbers of a step, and the run's settings in each tracker's own form."""

import logging
import threading
import time
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from trainer.errors import ConfigError
from trainer.text import did_you_mean

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 600.0
"""How long a tracker that failed is left alone; each further failure doubles it."""

FINAL_METRICS = ("loss/train", "loss/validation")
"""Tags that TensorBoard's HParams tab shows beside the settings."""


def check_tracker_names(names: list[str]) -> None:
    """Refuses a tracker that Accelerate does not know, and one it would leave out silently because its package is missing."""
    known = sorted(str(name) for name in LOGGER_TYPE_TO_CLASS)
    installed = {str(name) for name in get_available_trackers()}
    problems = [
        f"metrics.trackers: unknown tracker {name!r}; {did_you_mean(name, known)}"
        if name not in known
        else f"metrics.trackers: {name!r} needs its package, which is not installed; install it (pip install {name}), or leave it out"
        for name in names
        if name not in installed
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
) -> list["PatientTracker"]:
    """Opens the trackers that the Accelerator was made with; the main process has some.

    TensorBoard is told to forget everything after the resumed step (on a fresh start: what a launch drew that never saved), so
    nothing is drawn twice; the settings are written once, by the fresh start, into the run's own event file.
    """
    threading.excepthook = _tell_end_of_thread
    purge = 0 if resumed_step is None else resumed_step + 1
    accelerator.init_trackers(name, config=None, init_kwargs={"tensorboard": {"purge_step": purge}})
    if not accelerator.is_main_process:
        return []
    plain = {key: _plain(value) for key, value in settings.items()}
    for tracker in names:
        if tracker != "tensorboard":
            accelerator.get_tracker(tracker).store_init_configuration(plain)
        elif resumed_step is None:
            _write_hparams(accelerator, plain)
    return [PatientTracker(tracker) for tracker in accelerator.trackers]


class PatientTracker:
    """A tracker that may fail: it is left alone for a while, longer after each failure, and then tried again.

    What comes in between is missing in it, and nothing else: metrics.jsonl has every step.
    """

    def __init__(self, tracker: GeneralTracker) -> None:
        self._tracker = tracker
        self._pause_seconds = 0.0
        self._retry_at = 0.0
        self._missing = 0

    @property
    def name(self) -> str:
        return str(self._tracker.name)

    def log(self, values: dict[str, float], step: int) -> None:
        """Hands a step's numbers over, or counts them as missing; raises what the tracker raises."""
        if time.monotonic() < self._retry_at:
            self._missing += 1
            return
        try:
            self._tracker.log(values, step=step)
        except Exception:
            self._missing += 1
            self._pause_seconds = min(max(FIRST_PAUSE_SECONDS, 2 * self._pause_seconds), LONGEST_PAUSE_SECONDS)
            self._retry_at = time.monotonic() + self._pause_seconds
            self._drop_writer(step)
            raise
        if self._missing:
            log.info("%s is written again; %d entries are missing in it, metrics.jsonl has them", self.name, self._missing)
        self._pause_seconds, self._missing = 0.0, 0

    def close(self) -> None:
        """Writes what is left; raises what the tracker raises."""
        self._tracker.finish()

    def _drop_writer(self, step: int) -> None:
        """Lets go of TensorBoard's writer, whose thread has died and would raise the same error for ever.

        The next call opens another file, which begins by forgetting what of this step and later was drawn.
        """
        writer = getattr(self._tracker, "writer", None)
        if isinstance(writer, SummaryWriter):
            writer.file_writer = writer.all_writers = None
            writer.purge_step = step


def _tell_end_of_thread(args: Any) -> None:
    """What Python prints of an error that ends a thread, but for TensorBoard's writers: theirs is raised again by the next call."""
    is_writer = "event_file_writer" in type(args.thread).__module__
    if not (is_writer and isinstance(args.exc_value, OSError)):
        threading.__excepthook__(args)


def _write_hparams(accelerator: Accelerator, settings: dict[str, Any]) -> None:
    """The HParams tab's own records; Accelerate's call would make another run folder at each start."""
    writer = accelerator.get_tracker("tensorboard").writer
    experiment, session_start, _ = hparams(settings, dict.fromkeys(FINAL_METRICS, 0.0))
    writer.file_writer.add_summary(experiment, global_step=0)
    writer.file_writer.add_summary(session_start, global_step=0)
    writer.flush()


def _plain(value: Any) -> int | float | str | bool:
    return value if isinstance(value, (int, float, str, bool)) else str(value)
