"""What only TensorBoard can hold: settings and final metrics (HParams), the order of the charts, text, histograms."""

import time
from collections.abc import Collection, Mapping
from contextlib import closing
from io import BytesIO
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from trainer import files
from trainer.metrics.event_files import EventFile, new_event_file
from trainer.metrics.histograms import Histogram
from trainer.metrics.tags import layout
from trainer.metrics.trackers import naming, plain

FINAL_METRICS = (
    "Loss/train_smoothed",
    "Loss/validation",
    "Loss/validation_bits_per_byte",
    "Speed/tokens_per_second",
    "Speed/mfu",
)
"""Tags that the HParams tab shows beside the settings: the newest value of each."""

SETTINGS = "events.out.tfevents.0000000000.settings"
"""The event file with the settings of the newest launch."""

_END = ".end"
"""How the name of the file ends that says that the run has finished."""


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Writes what the HParams tab shows of this launch, in place of what it showed of the one before; raises OSError.

    TensorBoard keeps the first such word of a run for ever, so it stands in a file of its own, whose name comes before all others.
    """
    experiment, session_start, _ = hparams(
        {key: plain(value) for key, value in settings.items()},
        dict.fromkeys(map(naming(folder, "tensorboard"), FINAL_METRICS), 0.0),
    )
    content, now = BytesIO(), time.time()
    file = RecordWriter(content)
    for event in (
        Event(wall_time=now, file_version="brain.Event:2"),
        Event(wall_time=now, step=0, summary=experiment),
        Event(wall_time=now, step=0, summary=session_start),
    ):
        file.write(event.SerializeToString())
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


def write_layout(writer: SummaryWriter, features: Collection[str]) -> None:
    """Writes which charts the Custom Scalars tab has, and in which order, for a run with these features."""
    writer.add_custom_scalars(layout(features))


def write_histogram(writer: SummaryWriter, tag: str, step: int, bins: Histogram) -> None:
    """Draws one histogram."""
    writer.add_histogram_raw(
        tag,
        min=bins.min,
        max=bins.max,
        num=bins.num,
        sum=bins.sum,
        sum_squares=bins.sum_squares,
        bucket_limits=bins.bucket_limits,
        bucket_counts=bins.bucket_counts,
        global_step=step,
    )
