import json
import threading
import time

import pytest

from tests.commands import paragraph, trainer
from tests.messages import says
from trainer import ask
from trainer.config.load import dump, load
from trainer.ending.outcome_file import write_outcome
from trainer.journal import Journal
from trainer.locks import lock_run, lock_supervision
from trainer.safety import request_file
from trainer.safety.request_file import REQUEST


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """That of a run which this process holds as one that trains it would."""
    monkeypatch.setattr(ask, "ALIVE_SECONDS", 0.1)
    monkeypatch.setattr(ask, "LOOK_SECONDS", 0.01)
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump(load("shakespeare", ["name=mine"]).config))
    write_outcome(folder, "running", step=7, reason="training")
    with lock_run(folder):
        yield folder


def answering(folder, *events, then=lambda: None):
    """A run that takes one request and writes these events, of which the first gets its id."""

    def answer():
        ends = time.monotonic() + 10.0
        while (asked := request_file.look(folder)) is None and time.monotonic() < ends:
            time.sleep(0.005)
        request_file.withdraw(folder)
        for event, facts in events:
            own = {"do": asked.do, "by": asked.by, "id": asked.id} if event == "request" else {}
            Journal(folder).write(event, **own, **facts)
        then()

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    return thread


def refused(*words):
    said = trainer(*words)
    assert said.code == 2, said
    return paragraph(said.err)


def test_a_save_that_is_made_is_said_with_its_step_and_its_place(folder):
    Journal(folder).write("save", step=9, reason="of before")
    thread = answering(folder, ("request", {"step": 9, "saved": True}), ("save", {"step": 8}), ("save", {"step": 9}))
    said = trainer("save", str(folder))
    thread.join()
    assert (said.code, "step-00000009" in said.out, "pinned" in said.out) == (0, True, False)


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ([("request", {"step": 9, "saved": False})], ["step 9", "train.log"]),
        (
            [("request", {"step": 9, "saved": True}), ("save_failed", {"step": 9, "failure": "the disk is full"})],
            ["step 9", "the disk is full"],
        ),
        (
            [("request", {"step": 9, "saved": True}), ("not_saved", {"step": 9, "tensor": "lm_head.weight"})],
            ["step 9", "lm_head.weight", "not finite"],
        ),
        ([], ["has not answered", "--timeout", "took the request"]),
    ],
)
def test_a_save_that_is_not_made_is_refused_with_the_reason(folder, events, words):
    thread = answering(folder, *events)
    says(refused("save", str(folder), "--timeout", "0.5"), "mine", *words)
    thread.join()


def test_what_nobody_takes_is_taken_back(folder):
    says(refused("save", str(folder), "--timeout", "0.1"), "mine", "withdrawn")
    says(refused("stop", str(folder), "--timeout", "0.1"), "mine", "withdrawn")
    assert not (folder / REQUEST).exists()


def test_a_run_that_waits_to_be_started_again_is_alive(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(ask, "is_trained", lambda folder: False)
    says(refused("stop", str(folder), "--no-wait"), "nothing trains mine")
    with lock_supervision(folder):
        assert trainer("stop", str(folder), "--no-wait").code == 0
    assert request_file.look(folder).do == "stop"


def test_a_request_may_be_left_without_waiting(folder):
    assert trainer("save", str(folder), "--pin", "--no-wait").code == 0
    content = json.loads((folder / REQUEST).read_text())
    assert (content["do"], content["pin"]) == ("save", True)


def test_a_run_that_ends_meanwhile_says_how(tmp_path, folder, monkeypatch):
    alive = [True]
    monkeypatch.setattr(ask, "_is_alive", lambda folder: alive[0])

    def ends():
        write_outcome(folder, "diverged", step=9, reason="the loss is not finite")
        alive[0] = False

    thread = answering(folder, then=ends)
    says(refused("save", str(folder), "--timeout", "5"), "mine", "diverged", "step 9")
    thread.join()
    alive[0] = True
    thread = answering(folder, ("request", {"step": 9}), then=ends)
    says(refused("stop", str(folder), "--timeout", "5"), "mine", "diverged", "step 9")
    thread.join()
