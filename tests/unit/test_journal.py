import errno
import json
import logging
import multiprocessing
import os
from datetime import datetime
from pathlib import Path

import pytest

from tests.messages import logged, names
from trainer.ending.causes import Cause
from trainer.journal import JOURNAL, Journal, read_events


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_an_event_is_one_line_with_its_time_and_its_facts(tmp_path):
    Journal(tmp_path / "run").write("save", step=5, path=Path("a/b"), steps=(1, 2), none=None)
    (line,) = (tmp_path / "run" / JOURNAL).read_text().splitlines()
    event = json.loads(line)
    assert datetime.fromisoformat(event.pop("time")).utcoffset().total_seconds() == 0
    assert event == {"event": "save", "step": 5, "path": "a/b", "steps": [1, 2], "none": None}


def test_events_read_back_in_the_order_in_which_they_were_written(tmp_path):
    for number in range(5):
        Journal(tmp_path).write("save", step=number)
    assert [event["step"] for event in read_events(tmp_path)] == [0, 1, 2, 3, 4]


def test_a_run_without_a_journal_has_no_events(tmp_path):
    assert read_events(tmp_path) == []


def test_a_number_that_is_not_finite_is_none(tmp_path):
    Journal(tmp_path).write("save", loss=float("nan"), inner={"a": [float("inf"), 1.5], 3: "three"})
    json.loads((tmp_path / JOURNAL).read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    (event,) = read_events(tmp_path)
    assert event["loss"] is None
    assert event["inner"] == {"a": [None, 1.5], "3": "three"}


def test_the_journals_own_names_are_not_facts(tmp_path):
    for name in ("time", "event", "lost_events"):
        with pytest.raises(AssertionError, match="journal's own"):
            Journal(tmp_path).write("save", **{name: 1})


def test_the_event_after_one_that_was_cut_short_is_whole(tmp_path):
    journal = Journal(tmp_path)
    journal.write("start")
    journal.write("save", step=5)
    path = tmp_path / JOURNAL
    path.write_bytes(path.read_bytes()[:-9])
    journal.write("stop", step=6)
    assert [event["event"] for event in read_events(tmp_path)] == ["start", "stop"]


@pytest.mark.parametrize(
    "damage", [b"\xff\xfe", b"{", b"[1]", b"null", b'{"step": 1}', b'{"event": 1}', b"\0" * 9, b"[" * 99999]
)
def test_a_damaged_line_is_left_out(tmp_path, damage):
    Journal(tmp_path).write("start")
    with open(tmp_path / JOURNAL, "ab") as file:
        file.write(damage + b"\n\n")
    Journal(tmp_path).write("stop")
    assert [event["event"] for event in read_events(tmp_path)] == ["start", "stop"]


def test_a_full_disk_loses_events_and_their_number_stands_in_the_next(tmp_path, monkeypatch, caplog):
    journal = Journal(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("trainer.files.append_line", full_disk)
        for step in range(5):
            journal.write("save", step=step)
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [
        names(text, "'save'", "No space left on device", count) for text, count in zip(told, (1, 2, 4), strict=True)
    ] == [True] * 3
    journal.write("save", step=9)
    journal.write("stop")
    saved, stopped = read_events(tmp_path)
    assert saved["step"] == 9
    assert saved["lost_events"] == 5
    assert "lost_events" not in stopped


def test_a_folder_that_cannot_be_made_loses_the_event_only(tmp_path, caplog):
    (tmp_path / "run").write_text("a file")
    Journal(tmp_path / "run").write("start")
    logged(caplog, "'start'")


def write_many(folder, name):
    journal = Journal(folder)
    for number in range(200):
        journal.write("save", process=name, step=number, text="x" * 300)


def test_several_processes_write_whole_events_each_in_its_order(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=write_many, args=(tmp_path, name)) for name in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    events = read_events(tmp_path)
    assert len(events) == 600 == sum(map(bool, (tmp_path / JOURNAL).read_bytes().split(b"\n"))), "no line is damaged"
    for name in range(3):
        assert [event["step"] for event in events if event["process"] == name] == list(range(200))


def test_a_cause_of_an_earlier_version_is_read_under_the_name_of_today(tmp_path):
    (tmp_path / JOURNAL).write_text(
        '{"time": "", "event": "stop", "cause": "refusal"}\n{"time": "", "event": "refusal", "step": 5}\n'
        '{"time": "", "event": "stop", "cause": 5}\n'
    )
    stopped, passed_over, strange = read_events(tmp_path)
    assert stopped["cause"] == Cause.REFUSED
    assert passed_over["event"] == "refusal"
    assert strange["cause"] == 5


def test_a_journal_that_cannot_be_read_is_not_taken_for_an_empty_one(tmp_path):
    os.mkdir(tmp_path / JOURNAL)
    with pytest.raises(IsADirectoryError):
        read_events(tmp_path)
