"""The writer in this process, over a channel that says what a test wants."""

import mmap
import time

import pytest

from tests.small_checkpoints import CONFIG, manifest_of
from trainer.checkpoint.channel import mark, to_text
from trainer.checkpoint.manifest import read_manifest
from trainer.checkpoint.store import verify
from trainer.checkpoint.writer import Writer


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
        "folder": str(store.folder), "policy": {"keep_last": 2, "keep_best": 1}, "slots": [], "slot_bytes": 8192, "second_place": None,
        "run_folder": str(tmp_path), "curve": str(tmp_path / "metrics.jsonl"), "mark": str(tmp_path / ".saved"), "pid": -1,
    }  # fmt: skip


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
