"""The trainer's side of the writer: starts it, hands it snapshots, hears what came of them, and starts another when it died."""

import functools
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from trainer import beats, start
from trainer.checkpoint.commit import CommitPlan, SaveResult
from trainer.checkpoint.context import CheckpointContext
from trainer.checkpoint.format.manifest import Manifest
from trainer.checkpoint.resume.lock import DEATH_SECONDS, HUNG_SECONDS
from trainer.checkpoint.save.protocol import Channel, mark, to_text
from trainer.checkpoint.save.snapshot import Slot, Snapshots, free_memory_bytes, make_slot, slots_that_fit
from trainer.checkpoint.save.status import WaitNotice
from trainer.config.schema import CheckpointConfig
from trainer.locks import Lock
from trainer.text import duration, numbered, size

log = logging.getLogger(__name__)

_COMMAND = start.command("trainer.checkpoint.save.writer")

_PROBE = "import os, sys; file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT); os.write(file, b'.'); os.fsync(file); os.unlink(sys.argv[1])"

MAX_STARTS = 3
"""Writers that may die in a row before saves are made without one."""


@dataclass
class _Held:
    """What a slot holds, as the writer was told; said again to a writer that takes a dead one's place."""

    manifest: Manifest
    small: Mapping[str, bytes]
    must_write: bool
    is_asked: bool = False


SILENCE_SECONDS = 60.0
"""A writer beats while it writes, also where the disk hangs; one that is silent for so long was stopped, and another does its work."""


ANSWER_SECONDS = 30.0
"""How long a disk may take to take a byte."""


class WriterLost(Exception):
    """Writers died MAX_STARTS times in a row, or one hung and was ended: saves are made without one from here on."""


def tell_note(note: Mapping[str, Any]) -> None:
    """Logs what somebody beside the trainer wants to be known."""
    log.log(logging.WARNING if note["is_failure"] else logging.INFO, note["note"])


class WriterClient:
    """Two slots and a writer. One write is in flight at a time; everything here is rank 0's."""

    def __init__(self, snapshots: Snapshots, plan: CommitPlan, lock: Lock | None, tell: Callable[..., None]) -> None:
        """`lock`: of the folder, which the writer holds too, None in tests; `tell` hears, as facts by name, when a writer dies."""
        self._snapshots, self._lock, self._tell = snapshots, lock, tell
        self._hello: dict[str, Any] = {
            "plan": plan.to_plain(),
            "pid": os.getpid(),
            "lock": str(lock.path) if lock else None,
            "slots": [slot.descriptor for slot in snapshots.slots],
            "slot_bytes": len(snapshots.slots[0].pages),
        }
        self._held: dict[int, _Held] = {}
        self._arriving: list[tuple[Slot, _Held]] = []
        self._deaths = 0
        self._process, self._channel = self._start()

    # What the checkpointer asks

    @property
    def pid(self) -> int:
        """The writer's process."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """The writer's, once it has ended and was waited for."""
        return self._process.returncode

    @property
    def writing(self) -> int | None:
        """The slot whose write is in flight."""
        return next((number for number, held in self._held.items() if held.is_asked), None)

    @property
    def still_seconds(self) -> float:
        """For how long the write that is in flight has not moved; 0 when none is."""
        return 0.0 if self.writing is None else time.monotonic() - self._moved_at

    def free_slot(self) -> Slot | None:
        """The slot for the next snapshot: of those not being written and not promised to the disk, the older; None: there is none."""
        self.advance()
        promised = {number for number, held in self._held.items() if held.is_asked or held.must_write}
        promised |= {slot.number for slot, _ in self._arriving}
        free = [slot for slot in self._snapshots.slots if slot.number not in promised]
        return min(free, key=lambda slot: -1 if slot.step is None else slot.step, default=None)

    def take(self, slot: Slot, manifest: Manifest, small: Mapping[str, bytes], *, must_write: bool) -> None:
        """Snapshots this moment into the slot; it counts as whole from when its copies have arrived."""
        assert all(slot is not other for other, _ in self._arriving), "copies into this slot are still under way"
        if not self._snapshots.is_laid_out():
            self._lay_out()
        self._held.pop(slot.number, None)
        self._channel.send({"do": "begin", "slot": slot.number})
        self._snapshots.copy(slot, manifest.step)
        self._arriving.append((slot, _Held(manifest, small, must_write)))
        self.advance()

    def _lay_out(self) -> None:
        """A new layout for every slot, once nothing waits to be written by the old one. raises WriterLost"""
        while self.pending():
            self.advance(wait=True)
            self.wait()
        self._held.clear()
        for each in self._snapshots.slots:
            self._channel.send({"do": "begin", "slot": each.number})
        self._channel.send({"do": "images", "images": self._snapshots.lay_out().facts()})

    def advance(self, *, wait: bool = False) -> None:
        """Tells the writer of snapshots whose copies have arrived, and asks for the write whose turn it is."""
        for slot, held in list(self._arriving):
            if slot.copied is not None:
                if wait:
                    slot.copied.synchronize()
                elif not slot.copied.query():
                    continue
                slot.copied = None
            self._arriving.remove((slot, held))
            self._held[slot.number] = held
            mark(slot.memory, held.manifest.step)
            self._tell_whole(slot.number, held)
        self._ask_next()

    def poll(self, seconds: float = 0.0) -> list[SaveResult]:
        """What was written since the last call; waits up to `seconds` for something. raises WriterLost"""
        answers = self._channel.arrived(seconds)
        if answers is None:
            self._start_again()
            return []
        if answers:
            self._heard_at = time.monotonic()
        elif time.monotonic() - self._heard_at > SILENCE_SECONDS:
            log.warning("the writer has given no sign of life for %.0f seconds: it is ended", SILENCE_SECONDS)
            self._process.kill()
            self._heard_at = time.monotonic()
        self._see_progress(answers)
        done = []
        for answer in self._tell_notes(answers):
            self._held[answer["done"]].is_asked = self._held[answer["done"]].must_write = False
            self._deaths = 0
            done.append(SaveResult(**{**answer["result"], "untidy": tuple(answer["result"]["untidy"])}))
        if done:
            self._ask_next()
        return done

    def wait(self) -> list[SaveResult]:
        """`poll` for a second, for whoever cannot go on without the writer: one that hangs is ended. raises WriterLost"""
        if self.still_seconds > HUNG_SECONDS:
            self._end_hung()
            still = duration(HUNG_SECONDS)
            raise WriterLost(f"the writer has moved nothing for {still}, and was ended: its disk hangs")
        return self.poll(1.0)

    def wait_for(self, step: int, hear: Callable[[list[SaveResult]], object]) -> SaveResult:
        """Waits until a step is written; `hear` is told of everything that is on the way. raises WriterLost"""
        self.advance(wait=True)
        notice = WaitNotice(f"waiting for the checkpoint of step {step} to reach the disk")
        while True:
            answers = self.wait()
            hear(answers)
            for done in answers:
                if done.step == step:
                    return done
            notice.log_if_due()

    def forget_from(self, step: int) -> None:
        """Takes back the snapshots from this step on, whole and on their way, but for one that is being written."""
        self.advance(wait=True)
        for number, held in list(self._held.items()):
            if held.manifest.step >= step and not held.is_asked:
                del self._held[number]
                mark(self._snapshots.slots[number].memory, None)
                self._channel.send({"do": "begin", "slot": number})

    def settle(self) -> None:
        """Makes the device's next work wait for copies that are still under way."""
        if self._arriving:
            self._snapshots.settle()

    def pending(self) -> bool:
        """Whether something that was promised is not on the disk yet."""
        return bool(self._arriving) or any(held.is_asked or held.must_write for held in self._held.values())

    def end(self, *, wait_for_copies: bool) -> None:
        """Lets the writer finish what it was asked, commit the newest snapshot that is not on the disk, and leave; waits for it."""
        self._channel.send({"do": "end", "copies": wait_for_copies})
        and_copies = " and for its last copy to the mirror" if wait_for_copies else ""
        notice = WaitNotice(f"waiting for the writer to end{and_copies}")
        self._moved_at = time.monotonic()
        while self._process.poll() is None:
            beats.beat()  # a copy may take hours; what hangs is ended below
            answers = self._channel.arrived(1.0) or []
            self._see_progress(answers)
            self._tell_notes(answers)
            if time.monotonic() - self._moved_at > HUNG_SECONDS:
                self._end_hung()
                log.warning(
                    f"the writer has moved nothing for {duration(HUNG_SECONDS)}, and was ended: a snapshot in memory or a copy to the "
                    "mirror that was not finished is lost; what the log calls a checkpoint is on the disk"
                )
                break
            notice.log_if_due()
        self._channel.close()

    # The writer's process

    def _start(self) -> tuple[subprocess.Popen[bytes], Channel]:
        ours, theirs = socket.socketpair()
        passed = [theirs.fileno(), *self._hello["slots"], *(self._lock.descriptors if self._lock else [])]
        command, null = [*_COMMAND, str(theirs.fileno())], subprocess.DEVNULL
        process = subprocess.Popen(command, pass_fds=passed, start_new_session=True, stdin=null, stdout=null)
        theirs.close()
        try:
            if self._lock:
                self._lock.hand_over(process.pid)
        except OSError as error:
            log.warning("the next start cannot know that this writer may outlive its trainer: %s", error)
        self._heard_at = self._moved_at = time.monotonic()
        self._progress = 0
        channel = Channel(ours)
        channel.send(self._hello)
        return process, channel

    def _see_progress(self, answers: list[dict[str, Any]]) -> None:
        """Notes when the writer last moved: it says so with every beat, and a finished write is one too."""
        counters = [answer["progress"] for answer in answers if "progress" in answer]
        if any("done" in answer for answer in answers) or (counters and counters[-1] != self._progress):
            self._moved_at = time.monotonic()
        self._progress = counters[-1] if counters else self._progress

    def _end_hung(self) -> None:
        """Ends the writer; one that waits for a disk within the system cannot be ended, and is not waited for."""
        self._process.kill()
        try:
            self._process.wait(DEATH_SECONDS)
        except subprocess.TimeoutExpired:
            log.warning("the writer (process %d) does not die before its disk answers", self._process.pid)

    def _start_again(self) -> None:
        """A new writer, told everything that the dead one knew. raises WriterLost"""
        self._deaths += 1
        try:
            code = self._process.wait(DEATH_SECONDS)
        except subprocess.TimeoutExpired:
            raise WriterLost("the writer cannot be ended: it waits for a disk that does not answer") from None
        self._channel.close()
        self._tell(state="died", code=code)
        if self._deaths >= MAX_STARTS:
            raise WriterLost(f"{self._deaths} writers in a row died, the last with code {code}")
        log.warning("the writer died (code %d); another takes its place", code)
        self._process, self._channel = self._start()
        if self._snapshots.layout is not None:
            self._channel.send({"do": "images", "images": self._snapshots.layout.facts()})
        for number, held in self._held.items():
            held.must_write = held.must_write or held.is_asked
            held.is_asked = False
            self._tell_whole(number, held)
        self._ask_next()

    @staticmethod
    def _tell_notes(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Logs what the writer wants to be known; returns the other answers."""
        for answer in answers:
            if "note" in answer:
                tell_note(answer)
        return [answer for answer in answers if "done" in answer]

    def _tell_whole(self, number: int, held: _Held) -> None:
        small = {name: to_text(content) for name, content in held.small.items()}
        self._channel.send({"do": "whole", "slot": number, "manifest": asdict(held.manifest), "small": small})

    def _ask_next(self) -> None:
        """Asks for the oldest promised write, if none is in flight."""
        if self.writing is not None:
            return
        if promised := [(held.manifest.step, number) for number, held in self._held.items() if held.must_write]:
            number = min(promised)[1]
            self._held[number].is_asked = True
            self._moved_at = time.monotonic()
            self._channel.send({"do": "write", "slot": number})


def disk_answers(folder: Path) -> bool:
    """Whether the disk of a folder takes a byte, or refuses it, within ANSWER_SECONDS; tried in a process that may hang in our place."""
    file = folder / f".staging-probe-{os.getpid()}"
    probe = subprocess.Popen([sys.executable, "-I", "-S", "-c", _PROBE, str(file)], stderr=subprocess.DEVNULL)
    try:
        probe.wait(ANSWER_SECONDS)
    except subprocess.TimeoutExpired:
        probe.kill()
        return False
    return True


def begin_writer(
    context: CheckpointContext,
    settings: CheckpointConfig,
    plan: CommitPlan,
    slot_bytes: int,
    *,
    all_gather: Callable[[], None] = lambda: None,
) -> WriterClient | None:
    """Slots and a writer, or None where the settings do not want them or the memory has no room; what is decided is logged.

    all_gather  as Snapshots take it
    """
    if context.layout.gathers:
        log.info(
            "saves: the model is sharded, and a checkpoint holds it whole: for each save and snapshot training waits while the ranks gather %s, "
            "tensor by tensor, on rank 0's machine",
            size(slot_bytes),
        )
    if not settings.asynchronous:
        log.info("saves: training waits for them, as checkpoint.asynchronous asks")
        return None
    free = free_memory_bytes()
    number = slots_that_fit(slot_bytes, free, psutil.virtual_memory().total)
    if number == 0:
        taken = f"a snapshot of {size(slot_bytes)} has no room in the {size(free)} of free memory"
        log.warning("saves: training waits for them, because %s", taken)
        return None
    device = context.accelerator.device
    slots = [make_slot(index, slot_bytes, device) for index in range(number)]
    log.info("saves: in the background, from %s of %s in memory", numbered(number, "snapshot"), size(slot_bytes))
    snapshots = Snapshots(context.model, context.optimizer, slots, device, context.layout, all_gather=all_gather)
    report = functools.partial(context.journal.write, "writer")
    return WriterClient(snapshots, plan, context.lock, report)
