"""Strikes from inside: kills the trainer's processes, or its writer, or both, in the very middle of a copy, a write, a rename, a prune.

A clock seldom hits what takes a millisecond. So a run is armed before it starts, in each rank and in its writer, and the n-th time that
it comes to a place it kills whom it was told to. Besides, what rank 0 told its writer is written down: which snapshots were whole.
"""

import errno
import json
import mmap
import os
import shutil
import signal
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer import files
from trainer.checkpoint.format.manifest import MANIFEST
from trainer.checkpoint.format.memory_layout import WholeMemoryLayout
from trainer.checkpoint.save import protocol, writer, writer_client
from trainer.checkpoint.save.snapshot import Snapshots

IN_TRAINER, IN_WRITER = ("copy",), ("write", "manifest", "rename", "renamed", "prune", "rescue")
PLACES = IN_TRAINER + IN_WRITER
TOLD, PROCESSES, STRUCK, FULL = "told.jsonl", "processes.json", "struck.json", "full"

_WRITER = f"import runpy, sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r}); runpy.run_module('tests.chaos.aimed', run_name='__main__')"
"""What Python runs in the writer's place; a line more, since a module's name alone would be looked up in the folder that one stands in."""

LATE_SECONDS = 0.005
"""How late the thread that sends gets its turn, so that a copy is under way that the writer has not heard of."""


@dataclass(frozen=True)
class Aim:
    """Where a run is struck, at which time it comes there, and who dies of it."""

    folder: str
    """Where the notes lie: the ranks' processes, what the writer was told, whether it was struck."""
    place: str | None = None
    """One of PLACES; None: nowhere, a clock outside does it; `full`: nobody dies, but the disk is full while FULL is there."""
    nth: int = 1
    victims: tuple[str, ...] = ()
    """`writer`, `0`, `1`: the ranks by their numbers."""
    num_slots: int = 2
    """For how many snapshots there is room."""


def arm(aim: Aim) -> None:
    """Called in each rank before it runs."""
    protocol.Channel.__init__ = _watching(protocol.Channel.__init__, Path(aim.folder, TOLD))
    writer_client.WriterClient._start = _noting(writer_client.WriterClient._start, Path(aim.folder, TOLD))
    Snapshots.copy, Snapshots.lay_out = (
        _noted(Snapshots.copy, Path(aim.folder, TOLD)),
        _noted(Snapshots.lay_out, Path(aim.folder, TOLD)),
    )
    writer_client.slots_that_fit = lambda *_: aim.num_slots
    if aim.place == "copy":
        WholeMemoryLayout.write_rates = _struck_in_copy(WholeMemoryLayout.write_rates, aim)
    elif aim.place:
        writer_client._COMMAND = [sys.executable, "-c", _WRITER, json.dumps(asdict(aim))]


def strike(aim: Aim) -> None:
    """Kills, once in a launch; whoever strikes goes last, if it goes."""
    folder = Path(aim.folder)
    try:
        descriptor = os.open(folder / STRUCK, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        return
    pids = json.loads((folder / PROCESSES).read_text()) | {"writer": writer_told(folder)[0]}
    os.write(descriptor, json.dumps({"place": aim.place, "victims": aim.victims}).encode())
    for pid in sorted((pids[victim] for victim in aim.victims), key=os.getpid().__eq__):
        os.kill(pid, signal.SIGKILL)


def writer_told(folder: Path) -> tuple[int | None, dict[int, int]]:
    """The newest writer's process, and the step of the whole snapshot in each slot as it was told."""
    pid, whole, begun = None, {}, {}
    for line in (folder / TOLD).read_text().splitlines() if (folder / TOLD).exists() else ():
        note = json.loads(line)
        match note["do"]:
            case "start":
                pid, whole = note["pid"], {}
            case "begin":
                begun[note["slot"]] = note["step"]
            case "whole":
                whole[note["slot"]] = note["step"]
    return pid, {slot: step for slot, step in whole.items() if begun[slot] == step}


class _Watched:
    """A socket that notes which whole snapshots it has told the other end of, once it has."""

    def __init__(self, end: Any, path: Path) -> None:
        self._end, self._path = end, path

    def __getattr__(self, name: str) -> Any:
        return getattr(self._end, name)

    def sendall(self, content: bytes) -> None:
        message = json.loads(content[8:])
        if message.get("do") == "begin":
            time.sleep(LATE_SECONDS)
        self._end.sendall(content)
        if message.get("do") == "whole":
            _note(self._path, do="whole", slot=message["slot"], step=message["manifest"]["step"])


def _note(path: Path, **facts: Any) -> None:
    files.append_line(path, json.dumps(facts))


def _noted(real, path):
    """Writes down which slot is about to be filled, and with what; all of them and with nothing by a new layout."""

    def function(self, slot=None, step=None):
        for each in self.slots if slot is None else [slot]:
            _note(path, do="begin", slot=each.number, step=step)
        return real(self) if slot is None else real(self, slot, step)

    return function


def _watching(real, path):
    return lambda self, end: real(self, _Watched(end, path))


def _noting(real, path):
    def start(self):
        process, channel = real(self)
        _note(path, do="start", pid=process.pid)
        return process, channel

    return start


def _struck_in_copy(real, aim):
    """The learning rates are the first that a copy writes."""
    times = iter(range(1, 1 << 30))

    def write_rates(self, memory: mmap.mmap, rates: list[float]) -> None:
        if next(times) == aim.nth:
            if (
                "0" in aim.victims
            ):  # half of the copy has been made, by a thread that has let no other one run meanwhile
                half = self.num_bytes // 2
                memory[half // 2 : half] = bytes(half - half // 2)
            strike(aim)
        real(self, memory, rates)

    return write_rates


def _struck(module, name, aim, is_here=lambda *_: True, before=lambda *_: None, *, after=False):
    """Patches a function to strike the n-th time it is called where `is_here`, after `before` did a part of its work, or after it did all."""
    real, times = getattr(module, name), iter(range(1, 1 << 30))

    def function(*arguments, **keywords):
        strikes = is_here(*arguments) and next(times) == aim.nth
        if strikes and not after:
            before(*arguments)
            strike(aim)
        result = real(*arguments, **keywords)
        if strikes and after:
            strike(aim)
        return result

    setattr(module, name, function)


def _arm_writer(aim: Aim) -> None:
    match aim.place:
        case "write":
            _struck(files, "_write_all", aim, before=_write_half)
        case "manifest":
            _struck(
                Path,
                "write_text",
                aim,
                lambda path, *_: path.name == MANIFEST,
                lambda path, text, **_: path.write_bytes(text[:99].encode()),
            )
        case "rename":
            _struck(files, "move_folder", aim, _is_staging)
        case "renamed":
            _struck(os, "rename", aim, _is_staging, after=True)
        case "prune":
            _struck(
                shutil,
                "rmtree",
                aim,
                lambda path: path.name.startswith(".removing-"),
                lambda path: next(path.glob("*.*")).unlink(),
            )
        case "rescue":
            _struck_in_rescue(aim)
        case "full":
            files._write_all = _full_while(files._write_all, Path(aim.folder, FULL))


def _is_staging(source: Path, *_: Any) -> bool:
    return source.name.startswith(".staging-")


def _write_half(descriptor: int, block: memoryview, position: int) -> None:
    os.pwrite(descriptor, block[: len(block) // 8192 * 4096], position)


def _full_while(real, there):
    """No space is left on the device as long as a file is there."""

    def write(*arguments):
        if there.exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*arguments)

    return write


def _struck_in_rescue(aim: Aim) -> None:
    """The trainer dies at a snapshot, and its writer at the n-th file operation of what it does then."""
    is_rescuing = []
    real = writer.Writer.save

    def save(self, snapshot):
        is_rescuing.extend([True] if snapshot.manifest.reason == writer.RESCUED else [])
        return real(self, snapshot)

    writer.Writer.save = save
    for module, name in ((files, "_write_all"), (os, "fsync"), (os, "rename"), (os, "unlink")):
        _struck(module, name, aim, lambda *_: bool(is_rescuing))


if __name__ == "__main__":
    _arm_writer(Aim(**json.loads(sys.argv[1])))
    sys.argv = [sys.argv[0], sys.argv[2]]
    writer.main()
