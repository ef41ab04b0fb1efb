"""The writer of snapshots in this process, without a trainer: over a channel that says what a test wants."""

import mmap
from pathlib import Path

from trainer.checkpoint.commit import CommitPlan
from trainer.checkpoint.format.retention import Policy
from trainer.checkpoint.format.store import CheckpointStore
from trainer.checkpoint.save.writer import Writer

TWO_AND_BEST = Policy(2, 1)


class Silent:
    """A channel whose other end says nothing and keeps what it is told."""

    def __init__(self):
        self.answers = []

    def send(self, message):
        self.answers.append(message)


def plan_of(store: CheckpointStore, policy: Policy) -> CommitPlan:
    """Where a run beside the store's folder commits to it."""
    run = store.folder.parent
    (run / "metrics.jsonl").touch()
    return CommitPlan(store.folder, run, run / "metrics.jsonl", run / ".saved", policy)


def writer_of(
    store: CheckpointStore, channel=None, *, policy=TWO_AND_BEST, slots=2, slot_bytes=8192, images=(), pid=-1
):
    """A writer of `slots` empty slots; with `pid` -1 its trainer is taken for dead as soon as it is silent."""
    Path(store.folder.parent).mkdir(parents=True, exist_ok=True)
    hello = {"plan": plan_of(store, policy).to_plain(), "slots": [], "slot_bytes": slot_bytes, "pid": pid}
    writer = Writer(channel or Silent(), hello)
    writer.slots.extend(memoryview(mmap.mmap(-1, slot_bytes)) for _ in range(slots))
    writer.images.extend(images)
    return writer
