"""Accelerate's trackers, TensorBoard first: numbers of a step, and the run's settings in each tracker's own form."""

from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from torch.utils.tensorboard.summary import hparams

from trainer.errors import ConfigError
from trainer.text import did_you_mean

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
) -> None:
    """Opens the trackers that the Accelerator was made with, on the main process.

    TensorBoard is told to forget everything after the resumed step (on a fresh start: what a launch drew that never saved), so
    nothing is drawn twice; the settings are written once, by the fresh start, into the run's own event file.
    """
    purge = 0 if resumed_step is None else resumed_step + 1
    accelerator.init_trackers(name, config=None, init_kwargs={"tensorboard": {"purge_step": purge}})
    if not accelerator.is_main_process:
        return
    plain = {key: _plain(value) for key, value in settings.items()}
    for tracker in names:
        if tracker != "tensorboard":
            accelerator.get_tracker(tracker).store_init_configuration(plain)
        elif resumed_step is None:
            _write_hparams(accelerator, plain)


def _write_hparams(accelerator: Accelerator, settings: dict[str, Any]) -> None:
    """The HParams tab's own records; Accelerate's call would make another run folder at each start."""
    writer = accelerator.get_tracker("tensorboard").writer
    experiment, session_start, _ = hparams(settings, dict.fromkeys(FINAL_METRICS, 0.0))
    writer.file_writer.add_summary(experiment, global_step=0)
    writer.file_writer.add_summary(session_start, global_step=0)
    writer.flush()


def _plain(value: Any) -> int | float | str | bool:
    return value if isinstance(value, (int, float, str, bool)) else str(value)
