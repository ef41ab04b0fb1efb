"""What TensorBoard's HParams tab shows of a run: its settings and final metrics, and whether it has finished."""

import time
from collections.abc import Mapping
from contextlib import closing
from io import BytesIO
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import hparams

from trainer import files
from trainer.metrics.event_files import EventFile, new_event_file
from trainer.metrics.trackers import naming, plain

_LOSSES = ("Loss/train_smoothed", "Loss/validation", "Loss/validation_bits_per_byte")
FINAL_METRICS = (*_LOSSES, "Speed/tokens_per_second", "Speed/mfu")
"""Tags that the HParams tab shows beside the settings: the newest value of each."""

SETTINGS = "events.out.tfevents.0000000000.settings"
"""The event file with the settings of the newest launch."""

_END = ".end"
"""How the name of the file ends that says that the run has finished."""


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Writes what the HParams tab shows of this launch, in place of what it showed of the one before; raises OSError.

    TensorBoard keeps the first such word of a run for ever, so it stands in a file of its own, whose name comes before all others.
    """
    final = dict.fromkeys(map(naming(folder, "tensorboard"), FINAL_METRICS), 0.0)
    experiment, session_start, _ = hparams({key: plain(value) for key, value in settings.items()}, final)
    content, now = BytesIO(), time.time()
    file = RecordWriter(content)
    file.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
    for summary in (experiment, session_start):
        file.write(Event(wall_time=now, step=0, summary=summary).SerializeToString())
    files.write_atomic(folder / SETTINGS, content.getvalue())


def write_end(folder: Path, step: int) -> None:
    """Tells the HParams tab that the run in this folder has finished, in a file of its own: no later event makes TensorBoard forget it, but a file can go."""
    _, _, session_end = hparams({}, {})
    with closing(EventFile(new_event_file(folder, _END))) as file:
        file.add_event(Event(wall_time=time.time(), step=step, summary=session_end))


def remove_end(folder: Path) -> None:
    """Takes back that the run in this folder has finished, since it goes on."""
    for path in folder.glob(f"events.out.tfevents.*{_END}"):
        path.unlink()
