"""The writer in this process, over a channel that says what a test wants."""

import mmap
import os
import time

import pytest

from tests.small_checkpoints import CONFIG, manifest_of
from trainer.checkpoint.format.manifest import read_manifest
from trainer.checkpoint.format.retention import Policy
from trainer.checkpoint.format.store import verify
from trainer.checkpoint.save.protocol import mark, to_text
from trainer.checkpoint.save.writer import Image, Snapshot, Writer


class Said:
    """A channel whose other end says a few things, each after some time, and then nothing, but stays open."""

    def __init__(self, *messages, seconds=0.0):
        self.messages, self.seconds, self.answers = list(messages), seconds, []

    def receive(self):
        if not self.messages:
            time.sleep(60)
        time.sleep(self.seconds)
        return self.messages.pop(0)

    def send(self, message):
        self.answers.append(message)


@pytest.fixture
def hello(store, tmp_path):
    """What a writer is told first; its trainer is not this process's parent, so it is taken for dead as soon as it is silent."""
    (tmp_path / "metrics.jsonl").touch()
    return {
        "folder": str(store.folder),
        "policy": {"keep_last": 2, "keep_best": 1},
        "slots": [],
        "slot_bytes": 8192,
        "second_place": None,
        "run_folder": str(tmp_path),
        "curve": str(tmp_path / "metrics.jsonl"),
        "mark": str(tmp_path / ".saved"),
        "pid": -1,
    }


def writer_over(channel, hello, num_slots=2):
    writer = Writer(channel, hello)
    writer._slots = [memoryview(mmap.mmap(-1, hello["slot_bytes"])) for _ in range(num_slots)]
    return writer


def whole(slot, step):
    facts = {"do": "whole", "slot": slot, "small": {"config.yaml": to_text(CONFIG.encode())}}
    return {**facts, "manifest": vars(manifest_of(step))}


def test_a_trainer_that_is_gone_is_heard_to_its_last_word(store, hello):
    writer = writer_over(Said({"do": "images", "images": []}, whole(0, 1), whole(1, 2), seconds=0.1), hello)
    for slot, step in ((0, 1), (1, 2)):
        mark(writer._slots[slot], step)
    writer.run()
    assert [entry.step for entry in store.entries()] == [2] and verify(store.path(2)) == []
    assert read_manifest(store.path(2)).reason == "rescued"


def test_of_two_snapshots_the_one_that_is_whole_is_rescued(store, hello):
    writer = writer_over(Said({"do": "images", "images": []}, whole(0, 1), whole(1, 2)), hello)
    mark(writer._slots[0], 1)
    mark(writer._slots[1], None)
    writer.run()
    assert [entry.step for entry in store.entries()] == [1]


def test_what_is_written_in_whole_pages_and_cut_later_stays_within_the_bound(store, hello, monkeypatch):
    bound, seen, cut = 8000, [], os.ftruncate
    writer = writer_over(None, {**hello, "policy": {"keep_last": 9, "keep_best": 1, "max_disk_bytes": bound}}, 1)
    writer._images = [Image("model.safetensors", 0, 10, 4096, [])]
    monkeypatch.setattr(os, "ftruncate", lambda *to: (seen.append(store.num_bytes()), cut(*to)))
    for step in range(1, 9):
        assert writer._save(Snapshot(0, manifest_of(step), {"config.yaml": CONFIG.encode()}))["untidy"] == []
    assert len(store.entries()) > 1 and max(seen) <= bound


def test_what_a_writer_left_that_died_before_it_pruned_goes_before_the_next_write(store, hello, monkeypatch):
    policy = {"keep_last": 9, "keep_best": 1, "max_disk_bytes": 8000}
    writer = writer_over(None, {**hello, "policy": {**policy, "max_disk_bytes": None}}, 1)
    writer._images = [Image("model.safetensors", 0, 10, 4096, [])]
    snapshot = {step: Snapshot(0, manifest_of(step), {"config.yaml": CONFIG.encode()}) for step in range(1, 9)}
    for step in range(1, 8):
        writer._save(snapshot[step])
    writer._policy, seen, cut = Policy(**policy), [], os.ftruncate
    monkeypatch.setattr(os, "ftruncate", lambda *to: (seen.append(store.num_bytes()), cut(*to)))
    writer._save(snapshot[8])
    assert max(seen) <= 8000
