"""TensorBoard's event files, as this run writes them: named in the order in which they were begun, and written in the thread that draws.

TensorBoard reads a folder's files in the order of their names, and their names begin with the time. A clock that was set back would put
what a resumed run draws before what it drew earlier, which then takes it back. So a new file's number is the time, but always more than
that of every file before it.
"""

import io
import os
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from accelerate.tracking import TensorBoardTracker
from tensorboard.compat.proto.event_pb2 import Event, SessionLog, SourceMetadata
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import FileWriter, SummaryWriter

from trainer import files

PREFIX = "events.out.tfevents."

_BEGUN = ".recent.partial"
"""What a file is called until it may be read; TensorBoard reads whatever has `tfevents` in its name."""

_HEADER = struct.Struct("<QI")
_FOOTER_BYTES = 4


def event_files(folder: Path) -> list[Path]:
    """A folder's event files, in the order in which TensorBoard reads them."""
    return sorted(path for path in folder.glob(f"{PREFIX}*") if path.is_file())


def new_event_file(folder: Path, suffix: str = "") -> Path:
    """The name of a file that TensorBoard reads after all that are there."""
    newest = max((_number(path) for path in event_files(folder)), default=0)
    return folder / f"{PREFIX}{max(int(time.time()), newest + 1):010d}.{socket.gethostname()}.{os.getpid()}{suffix}"


def _number(path: Path) -> int:
    digits = path.name.removeprefix(PREFIX).partition(".")[0]
    return int(digits) if digits.isdecimal() else 0


def start_of_session(step: int) -> Event:
    """Says that the run goes on from here: what was drawn of this step and later is forgotten."""
    return Event(step=step, session_log=SessionLog(status=SessionLog.START))


def scalars(step: int, values: Mapping[str, float]) -> Event:
    """All numbers of a step, by tag, as one event."""
    found = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
    return Event(step=step, summary=Summary(value=found))


def write_some(file: io.FileIO, content: bytes) -> int:
    """Writes as much as the disk takes, and returns how many bytes that was; raises OSError. The one place that writes events."""
    return file.write(content)


class EventFile:
    """One file that is being written; with the calls that torch's FileWriter makes."""

    def __init__(self, path: Path, *, is_new: bool = True) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "ab", buffering=0)  # closed by close() or drop()
        self._unwritten = io.BytesIO()
        self._records = RecordWriter(self._unwritten)
        if is_new:
            source = SourceMetadata(writer="trainer")
            self.add_event(Event(wall_time=time.time(), file_version="brain.Event:2", source_metadata=source))
            self.flush()

    def add_event(self, event: Event) -> None:
        """Takes an event; it is in the file after `flush`."""
        self._records.write(event.SerializeToString())

    def flush(self) -> None:
        """Writes what was taken; raises OSError."""
        content = self._unwritten.getvalue()
        while content:
            content = content[write_some(self._file, content) :]
        self._unwritten.seek(0)
        self._unwritten.truncate()

    def sync(self) -> None:
        """Writes what was taken and waits until it is on the disk; raises OSError."""
        self.flush()
        files.fsync_open_file(self._file)

    @property
    def num_bytes(self) -> int:
        """In the file."""
        return self._file.tell()

    def rename(self, path: Path) -> None:
        """Goes on under another name of the same folder."""
        files.move_file(self.path, path)
        self.path = path

    def close(self) -> None:
        try:
            self.flush()
        finally:
            self._file.close()

    def drop(self) -> None:
        """Lets go of the file, and of what is not written."""
        self._file.close()

    def get_logdir(self) -> str:
        return str(self.path.parent)


def events_of_file(path: Path) -> Iterator[Event]:
    """The whole events of a file, as far as one follows the other."""
    with open(path, "rb") as file:
        while len(header := file.read(_HEADER.size)) == _HEADER.size:
            length, _ = _HEADER.unpack(header)
            content = file.read(length)
            if len(content) < length or len(file.read(_FOOTER_BYTES)) < _FOOTER_BYTES:
                return
            yield Event.FromString(content)


class _Files(FileWriter):
    """torch's, around one of our files."""

    def __init__(self, path: Path) -> None:
        self.event_writer = EventFile(path)


class BoardWriter(SummaryWriter):
    """torch's SummaryWriter, whose files have their names from here."""

    suffix = ".recent"

    file_writer: FileWriter | None
    all_writers: dict[str, FileWriter] | None
    purge_step: int | None

    def _get_file_writer(self) -> FileWriter:
        if self.file_writer is None:
            self.file_writer = _Files(new_event_file(Path(self.log_dir), f"{self.filename_suffix}{self.suffix}"))
            self.all_writers = {self.log_dir: self.file_writer}
            if self.purge_step is not None:
                self.file_writer.add_event(start_of_session(self.purge_step), self.purge_step)
                self.purge_step = None
        return self.file_writer

    @property
    def file(self) -> EventFile:
        """The file that is being written; a new one where the last was let go."""
        return self._get_file_writer().event_writer

    def go_on_in_new_file(self, events: Iterable[Event]) -> None:
        """Goes on in another file, which begins with these and is there once they are on the disk; raises OSError, and then in the old one."""
        self.flush()
        old, path = self.file, new_event_file(Path(self.log_dir), f"{self.filename_suffix}{self.suffix}")
        begun = _Files(path.with_name(_BEGUN))
        try:
            for event in events:
                begun.event_writer.add_event(event)
            begun.event_writer.sync()
            begun.event_writer.rename(path)
        except BaseException:
            begun.event_writer.drop()
            begun.event_writer.path.unlink(missing_ok=True)
            raise
        old.close()
        self.file_writer = begun
        self.all_writers = {self.log_dir: begun}

    def drop(self, step: int) -> None:
        """Lets go of a file that failed: the next call opens another, which begins by forgetting this step and later ones."""
        if self.file_writer is not None:
            self.file_writer.event_writer.drop()
        self.file_writer = self.all_writers = None
        self.purge_step = step


class BoardTracker(TensorBoardTracker):
    """Accelerate's tracker of TensorBoard, with our files, and one event for all numbers of a step."""

    def start(self) -> None:
        self.logging_dir = os.path.join(self.logging_dir_param, self.run_name)
        self.writer = BoardWriter(self.logging_dir, **self.init_kwargs)

    def log(self, values: Mapping[str, float], step: int | None = None, **_: Any) -> None:
        """Takes a step's numbers by tag; they are in the file after `writer.flush()`."""
        event = scalars(step or 0, values)
        event.wall_time = time.time()
        self.writer.file.add_event(event)
