"""Copies to a mirror, in a thread beside the saves: a slow mirror must not keep checkpoints from their own disk.

The thread is the writer's; where saves are made without one, the trainer's.
"""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import files
from trainer.checkpoint.format.verified_copy import Pace
from trainer.checkpoint.mirror.places import place_of_run
from trainer.checkpoint.mirror.transfer import copy_checkpoint
from trainer.checkpoint.resume.lock import HUNG_SECONDS
from trainer.errors import CheckpointError
from trainer.journal import Journal
from trainer.text import duration, size

if TYPE_CHECKING:  # the writer starts in half the time without pydantic
    from trainer.config.schema import CheckpointConfig


Tell = Callable[[dict[str, Any]], None]
"""Is given what came of a copy, as a note for the log: {"note", "is_failure"}."""

Hook = Callable[[], object]
"""Is called at a moment that its name says."""


@dataclass(frozen=True)
class MirrorSettings:
    """Where one run's copies go, and which."""

    where: str
    every: int
    """Every n-th checkpoint of the run is copied, and its last."""
    keep: int
    bytes_per_second: float | None


def mirror_settings(settings: "CheckpointConfig", name: str) -> MirrorSettings | None:
    """The mirror of the run of this name; None where none is wanted."""
    if settings.mirror is None:
        return None
    is_url = "://" in settings.mirror
    where = settings.mirror if is_url else str(files.project_folder() / settings.mirror)
    every, keep, bytes_per_second = settings.mirror_every, settings.mirror_keep, settings.mirror_bytes_per_second
    return MirrorSettings(place_of_run(where, name), every, keep, bytes_per_second)


class MirrorWorker:
    """Takes every n-th committed checkpoint, one after the other; of those that wait, only the newest is copied."""

    def __init__(self, settings: MirrorSettings, journal: Journal, tell: Tell, moved: Hook) -> None:
        """`moved` hears of every block that has moved."""
        self._where, self._every, self._keep = settings.where, settings.every, settings.keep
        self._pace = Pace(settings.bytes_per_second, between_blocks=self._note_move)
        self._moved, self._moved_at = moved, time.monotonic()
        self._journal, self._tell = journal, tell
        # Over all launches, or a run that is often interrupted would never copy.
        self._num_offered = journal.count("save")
        self._waiting: queue.SimpleQueue[Path | None] = queue.SimpleQueue()
        self._held: set[str] = set()
        self._next: Path | None = None
        self._choosing = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="copy", daemon=True)
        self._thread.start()

    @property
    def held(self) -> set[str]:
        """Names of the folder that is being copied and of the one that is next: pruning leaves them."""
        return set(self._held)

    def offer(self, checkpoint: Path, *, is_last: bool = False) -> None:
        """A checkpoint was committed; every n-th of the run is taken, and its last."""
        self._num_offered += 1
        if is_last or self._num_offered % self._every == 0:
            with self._choosing:
                if self._next is not None:  # it will not be copied: what waits for a slow mirror must not fill the disk
                    self._held.discard(self._next.name)
                self._next = checkpoint
                self._held.add(checkpoint.name)
                self._waiting.put(checkpoint)

    def finish(self) -> None:
        """Waits until everything taken is copied, as long as it moves."""
        self._waiting.put(None)
        self._moved_at = time.monotonic()
        while self._thread.is_alive():
            self._thread.join(0.2)
            if time.monotonic() - self._moved_at > HUNG_SECONDS:
                self._note(f"mirror: {self._where} hangs; the last copy is not finished, and not waited for")
                return

    def _note(self, words: str, *, is_failure: bool = True) -> None:
        self._tell({"note": words, "is_failure": is_failure})

    def _note_move(self) -> None:
        self._moved_at = time.monotonic()
        self._moved()

    def _work(self) -> None:
        is_last = False
        while not is_last and (checkpoint := self._waiting.get()) is not None:
            with self._choosing:
                while not self._waiting.empty() and not is_last:
                    newer = self._waiting.get()
                    is_last = newer is None
                    checkpoint = newer or checkpoint
                self._next = None
            self._copy(checkpoint)
            self._held.discard(checkpoint.name)

    def _copy(self, checkpoint: Path) -> None:
        step = int(checkpoint.name.removeprefix("step-"))
        try:
            copied = copy_checkpoint(checkpoint, self._where, keep=self._keep, pace=self._pace)
        except (CheckpointError, OSError) as error:
            self._journal.write("mirror", step=step, where=self._where, failure=str(error))
            self._note(f"mirror: {error}; the next copy tries again")
            return
        num_bytes, seconds = copied.num_bytes, copied.seconds
        self._journal.write("mirror", step=step, where=self._where, bytes=num_bytes, seconds=round(seconds, 3))
        self._note(f"step {step}: copied to {self._where}, {size(num_bytes)} in {duration(seconds)}", is_failure=False)
