"""The writer in this process, over a channel that says what a test wants."""

import os
import threading
import time

from tests.small_checkpoints import CONFIG, manifest_of
from tests.small_writers import Silent, writer_of
from trainer.checkpoint.format.manifest import read_manifest
from trainer.checkpoint.format.retention import Policy
from trainer.checkpoint.format.store import verify
from trainer.checkpoint.save.protocol import mark, to_text
from trainer.checkpoint.save.writer import Image, Snapshot

IMAGE = Image("model.safetensors", 0, 10, 4096, [])


class Said(Silent):
    """A channel whose other end says a few things, each after some time, and then nothing, but stays open."""

    def __init__(self, *messages, seconds=0.0):
        super().__init__()
        self.messages, self.seconds = list(messages), seconds

    def receive(self):
        if not self.messages:
            threading.Event().wait()
        time.sleep(self.seconds)
        return self.messages.pop(0)


def whole(slot, step):
    facts = {"do": "whole", "slot": slot, "small": {"config.yaml": to_text(CONFIG.encode())}}
    return {**facts, "manifest": vars(manifest_of(step))}


def test_a_trainer_that_is_gone_is_heard_to_its_last_word(store):
    writer = writer_of(store, Said({"do": "images", "images": []}, whole(0, 1), whole(1, 2), seconds=0.1))
    for slot, step in ((0, 1), (1, 2)):
        mark(writer.slots[slot], step)
    writer.run()
    assert [entry.step for entry in store.entries()] == [2] and verify(store.path(2)) == []
    assert read_manifest(store.path(2)).reason == "rescued"


def test_of_two_snapshots_the_one_that_is_whole_is_rescued(store):
    writer = writer_of(store, Said({"do": "images", "images": []}, whole(0, 1), whole(1, 2)))
    mark(writer.slots[0], 1)
    mark(writer.slots[1], None)
    writer.run()
    assert [entry.step for entry in store.entries()] == [1]


def test_what_is_written_in_whole_pages_and_cut_later_stays_within_the_bound(store, monkeypatch):
    bound, seen, cut = 8000, [], os.ftruncate
    writer = writer_of(store, policy=Policy(9, 1, max_disk_bytes=bound), slots=1, images=[IMAGE])
    monkeypatch.setattr(os, "ftruncate", lambda *to: (seen.append(store.num_bytes()), cut(*to)))
    for step in range(1, 9):
        assert writer.save(Snapshot(0, manifest_of(step), {"config.yaml": CONFIG.encode()})).untidy == ()
    assert len(store.entries()) > 1 and max(seen) <= bound


def test_what_a_writer_left_that_died_before_it_pruned_goes_before_the_next_write(store, monkeypatch):
    unbound = writer_of(store, policy=Policy(9, 1), slots=1, images=[IMAGE])
    snapshot = {step: Snapshot(0, manifest_of(step), {"config.yaml": CONFIG.encode()}) for step in range(1, 9)}
    for step in range(1, 8):
        unbound.save(snapshot[step])
    writer = writer_of(store, policy=Policy(9, 1, max_disk_bytes=8000), slots=1, images=[IMAGE])
    seen, cut = [], os.ftruncate
    monkeypatch.setattr(os, "ftruncate", lambda *to: (seen.append(store.num_bytes()), cut(*to)))
    writer.save(snapshot[8])
    assert max(seen) <= 8000
