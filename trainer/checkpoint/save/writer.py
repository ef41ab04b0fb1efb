"""The process beside the trainer that turns snapshots in memory into checkpoints on disk. Imports no torch.

    the trainer says                                    and the writer
      hello   slots, folder, policy, ...                  shares the memory, sweeps what an earlier writer left half done
      images  where the files lie in a slot               knows what to write
      begin   slot                                        forgets what the slot held: it is being filled
      whole   slot, manifest, small files                 knows that the slot holds a whole snapshot
      write   slot                                        writes, hashes, waits for the disk, commits, prunes, and answers: done
      end                                                 finishes what was asked, and leaves

When the trainer ends or dies, whatever killed it, its end of the socket closes: the writer then commits the newest whole snapshot that
is not on the disk yet, and leaves. Until it has, it holds the lock of the folder, which it shares with the trainer.
"""

import logging
import mmap
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import xxhash
from isal import isal_zlib

from trainer import files, lease
from trainer.checkpoint.commit import Began, CommitPlan, Committer, SaveResult
from trainer.checkpoint.format.finite import FiniteLook, Floats, NotFinite
from trainer.checkpoint.format.manifest import Manifest, to_json
from trainer.checkpoint.format.store import CheckpointStore
from trainer.checkpoint.save.protocol import Channel, marked, to_bytes
from trainer.text import one_line

log = logging.getLogger(__name__)

RESCUED = "rescued"
"""The reason of a checkpoint that nobody asked onto the disk before the trainer was gone."""

BEAT_SECONDS = 5.0
"""How often the trainer is given a sign of life."""

LAST_WORDS_SECONDS = 2.0
"""How long a dead trainer's messages may take to be read."""

PARENT_SECONDS = 0.5
"""How often the writer looks whether the trainer lives, besides the socket, which a process forked from it would keep open."""


@dataclass(frozen=True)
class Snapshot:
    """What a slot holds: everything about a checkpoint but the digests of its files."""

    slot: int
    manifest: Manifest
    small: dict[str, bytes]
    """Files that do not come from the slot's memory, by name."""


@dataclass(frozen=True)
class Image:
    """A file in a slot's memory: its name, where it begins, its size, and the checksums to fill in."""

    name: str
    start: int
    num_bytes: int
    padded_bytes: int
    checksums: list[tuple[int, int, list[int]]]
    floats: Sequence[tuple[str, int, int, str]] = ()
    """The weights or moments in it, as the fields of `finite.Floats`."""


class Writer:
    """Takes messages in one thread and writes in another, so that the trainer never waits to be heard."""

    def __init__(self, channel: Channel, hello: dict[str, Any]) -> None:
        self._channel = channel
        plan = CommitPlan.from_plain(hello["plan"])
        self._metrics_file = plan.metrics_file
        self._store = CheckpointStore(plan.folder)
        self._committer = Committer(self._store, plan, self._sync_metrics, channel.send, self._moved)
        self.slots = [memoryview(mmap.mmap(descriptor, hello["slot_bytes"])) for descriptor in hello["slots"]]
        self._parent = hello["pid"]
        self.images: list[Image] = []
        self._whole: dict[int, Snapshot] = {}
        self._asked: deque[int] = deque()
        self._ended: str | None = None
        self._committed: set[int] = set()
        self._waits_for_copies = False
        self._progress = 0
        self._news = threading.Condition()
        self._listener = threading.Thread(target=self._listen, name="listen", daemon=True)

    def run(self) -> None:
        """Serves until the trainer ends or dies, and then to the end of what is to be done."""
        with suppress(OSError):
            self.sweep()
        self._listener.start()
        threading.Thread(target=self._beat, name="beat", daemon=True).start()
        while (slot := self._next()) is not None:
            self._channel.send({"done": slot, "result": asdict(self.save(self._whole[slot]))})
        for snapshot in self._rescuable():
            if not self.save(replace(snapshot, manifest=replace(snapshot.manifest, reason=RESCUED))).not_finite:
                break
        if self._waits_for_copies:
            self._committer.finish_copies()

    def sweep(self) -> None:
        """Removes what an earlier writer left half done."""
        self._store.sweep()

    def facts(self) -> dict[str, Any]:
        """What others judge it by: a counter that moves with every block and file, and whether its trainer is gone."""
        return {"progress": self._progress, "is_orphan": self._ended == "died" or os.getppid() != self._parent}

    def _moved(self) -> None:
        self._progress += 1

    # Listening

    def _listen(self) -> None:
        while (message := self._channel.receive()) is not None:
            with self._news:
                self._take(message)
                self._news.notify()
        with self._news:
            self._ended = self._ended or "died"
            self._news.notify()

    def _take(self, message: dict[str, Any]) -> None:
        match message["do"]:
            case "images":
                self.images = [Image(**image) for image in message["images"]]
            case "begin":
                self._whole.pop(message["slot"], None)
            case "whole":
                small = {name: to_bytes(text) for name, text in message["small"].items()}
                self._whole[message["slot"]] = Snapshot(message["slot"], Manifest(**message["manifest"]), small)
            case "write":
                self._asked.append(message["slot"])
            case "end":
                self._ended, self._waits_for_copies = "ended", message["copies"]
            case unknown:
                raise AssertionError(f"an unknown message: {unknown}")

    def _beat(self) -> None:
        """Gives a sign of life now and then, also while the disk holds the writing up."""
        while True:
            time.sleep(BEAT_SECONDS)
            self._channel.send({"beat": True, "progress": self._progress})

    def _next(self) -> int | None:
        """The next slot to write; None when nothing is asked any more and nobody is there to ask."""
        while True:
            with self._news:
                if not self._asked and not self._ended:
                    self._news.wait(PARENT_SECONDS)
                if self._asked:
                    return self._asked.popleft()
                if self._ended:
                    return None
            if os.getppid() != self._parent:
                # What the trainer said last may still be on its way; a process forked from it may keep the socket open for ever.
                self._listener.join(LAST_WORDS_SECONDS)
                with self._news:
                    self._ended = self._ended or "died"

    def _rescuable(self) -> list[Snapshot]:
        """The whole snapshots newer than what is on the disk, newest first: the second is for one that cannot be kept.

        One that was being overwritten when the trainer died is not whole any more.
        """
        whole = [held for held in self._whole.values() if marked(self.slots[held.slot]) == held.manifest.step]
        newer = [snapshot for snapshot in whole if snapshot.manifest.step > max(self._committed, default=-1)]
        return sorted(newer, key=lambda snapshot: snapshot.manifest.step, reverse=True)

    # Writing

    def save(self, snapshot: Snapshot) -> SaveResult:
        """Commits one snapshot, unless it cannot be written or is not worth a checkpoint."""
        began, manifest = Began(), snapshot.manifest
        try:
            staging = self._committer.begin(manifest.step, self._bytes_of(snapshot))
            described = self._write(staging, snapshot)
            result = self._committer.commit(staging, replace(manifest, files=described), began)
        except OSError as error:
            return self._committer.fail(manifest, one_line(error, 1000))
        except NotFinite as error:
            return self._committer.leave_out(manifest, error.tensor)
        self._committed.add(manifest.step)
        return result

    def _write(self, staging: Path, snapshot: Snapshot) -> dict[str, dict[str, Any]]:
        """Writes every file of a snapshot; returns their sizes and digests by name. raises OSError, NotFinite"""
        described: dict[str, dict[str, Any]] = {}
        for image in self.images:
            described[image.name] = self._write_image(staging / image.name, self.slots[snapshot.slot], image)
        for name, content in snapshot.small.items():
            (staging / name).write_bytes(content)
            self._moved()
            described[name] = {"bytes": len(content), "xxh3_128": xxhash.xxh3_128_hexdigest(content)}
        return dict(sorted(described.items()))

    def _sync_metrics(self) -> None:
        files.fsync_file(self._metrics_file)
        self._moved()

    def _bytes_of(self, snapshot: Snapshot) -> int:
        """What a checkpoint takes at most while it is written: its images in whole pages, and some room for each file in its manifest."""
        in_manifest = len(to_json(snapshot.manifest)) + 256 * (len(snapshot.small) + len(self.images))
        return sum(image.padded_bytes for image in self.images) + sum(map(len, snapshot.small.values())) + in_manifest

    def _write_image(self, path: Path, slot: memoryview, image: Image) -> dict[str, Any]:
        """Writes one file out of the slot's memory, filling in its checksums, hashing it and looking at its numbers on the way."""
        pages = slot[image.start : image.start + image.padded_bytes]
        for start, num_bytes, places in image.checksums:
            checksum = struct.pack("<I", isal_zlib.crc32(pages[start : start + num_bytes]))
            for place in places:
                pages[place : place + 4] = checksum
        hasher, look = xxhash.xxh3_128(), FiniteLook(pages, (Floats(*floats) for floats in image.floats))

        def before_block(start: int, end: int) -> None:
            self._moved()
            hasher.update(pages[start:end])
            look.block(start, end)

        files.write_pages(path, pages, image.num_bytes, before_block)
        self._moved()
        return {"bytes": image.num_bytes, "xxh3_128": hasher.hexdigest()}


def _die(arguments: threading.ExceptHookArgs) -> None:
    """A thread that broke ends the process, which the trainer notices; half a writer would be waited for."""
    log.error("%s: %s", arguments.exc_type.__name__, arguments.exc_value, exc_info=arguments.exc_value)
    os._exit(70)


@contextmanager
def _held_on(lock: Path, facts: Callable[[], dict[str, Any]]) -> Iterator[None]:
    """Leaves signs of life beside the folder's lock, which this process holds with its trainer and after it, while the block runs."""
    record = lease.inheritor_of(lock)
    stop = lease.keep_beating(record, lease.process(), facts, lock)
    yield
    # Not after an error: the process ends then, and its record stands still, as after a kill.
    stop()
    lease.release_record(record)


def main() -> None:
    """The writer's process: its socket is the descriptor named on the command line; the first message is hello."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # whoever ends the trainer so wants its last snapshot on the disk
    threading.excepthook = _die
    logging.basicConfig(level=logging.INFO, format="writer: %(message)s")
    os.nice(10)
    try:
        psutil.Process().ionice(psutil.IOPRIO_CLASS_BE, 7)
    except OSError as error:
        log.info("the priority of its reads and writes stays as it is: %s", error)
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    hello = channel.receive()
    if hello is not None:
        writer = Writer(channel, hello)
        with _held_on(Path(hello["lock"]), writer.facts) if hello["lock"] else nullcontext():
            writer.run()
            channel.close()


if __name__ == "__main__":
    main()
