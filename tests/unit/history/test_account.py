"""The account of a run: shares that add up, every list, and the page."""

import json
import re

import pytest

from tests.messages import line_of, says
from tests.unit.tools.compare.test_page import figures
from tests.written_history import EVENTS, STEP_SECONDS, event, write_month
from trainer.history.account import MOST_LISTED, account_of, brief, facts, listed, text, to_json
from trainer.history.page import write_page
from trainer.history.words import _WORDS, events_backward, words
from trainer.journal import read_events


@pytest.fixture
def month(tmp_path):
    return write_month(tmp_path)


def test_the_parts_of_the_wall_time_add_up(month):
    account = account_of(month)
    assert account.effective_fraction == pytest.approx(200 * STEP_SECONDS / 11300)
    assert sum(account.parts.values()) == pytest.approx(11300)
    assert account.parts["evaluating"] == 2
    assert account.process_hours == pytest.approx(4 * (11300 - 3630) / 3600)


def test_programs_get_all_of_it(month):
    told = json.loads(to_json(account_of(month)))
    assert (told["outcome"], told["step"], told["val_loss"], told["val_step"]) == ("finished", 200, 3.3, 200)
    assert told["gpu_hours"] == told["process_hours"]
    assert told["resumes"] == {"number": 3, "compared": 1, "exact": 1}
    assert [(cost["cause"], cost["stops"], cost["lost_steps"]) for cost in told["lost_by_cause"]] == [
        ("SIGKILL", 1, 3),
        ("hang", 1, 2),
        ("exception", 1, 0),
        ("rollback", 1, 1),
    ]
    assert [
        len(told[kind])
        for kind in ("bad_batch", "recompute", "rollback", "digest_differs", "hang", "restart", "gave_up")
    ] == [1, 1, 1, 0, 1, 3, 0]
    assert [launch["cause"] for launch in told["launches"]] == [
        "SIGKILL",
        "hang",
        "exception",
        "interrupted",
        "finished",
    ]


@pytest.mark.parametrize("width", [80, 160])
def test_the_text_names_everything_and_keeps_to_the_width(month, width):
    said = text(account_of(month), width)
    assert max(map(len, said.splitlines())) <= width
    says(line_of(said, "effective"), "63.7 %", "3h 8m", "5 starts", "GPU-hours")
    line_of(said, "resumes 3", "exact 1/1")
    line_of(said, "stopped on request", "1h 0m")
    line_of(said, "SIGKILL", "3", "1m 48s", "10s", "50s")
    line_of(said, "step 40", "exact 3/3")
    line_of(said, "step 95", "not compared")
    says(said, "bad batches (1)", "rollbacks (1)", "step 151 to 150")


def test_on_cpus_there_are_no_gpu_hours(tmp_path):
    events = [
        {**each, "machine": "4 processes on CPU with 1 thread each"} if each["event"] == "start" else each
        for each in EVENTS
    ]
    account = account_of(write_month(tmp_path, events=events))
    assert facts(account)["gpu_hours"] is None
    assert "GPU" not in brief(account)


def test_of_many_stops_the_last_are_listed():
    said = listed("stops", [(f"step {number}", "why " * 30) for number in range(100)], 80)
    lines = said.splitlines()
    says(lines[0], "100", MOST_LISTED)
    assert "step 79 " not in said and "step 80 " in said and "step 99 " in said
    assert max(map(len, lines)) <= 80


def test_a_run_without_a_journal_has_no_account_and_fails_nobody(tmp_path):
    account = account_of(write_month(tmp_path, events=[]))
    assert brief(account) == text(account) == ""
    assert account.effective_fraction is None
    assert facts(account)["step"] == 200


def test_every_event_has_words_and_one_of_a_later_version_its_facts():
    unsaid = [each["event"] for each in EVENTS if "?" in words(each).replace("(out of memory?)", "")]
    assert unsaid == ["stop"], "one that ended before its first step"
    assert "save" in words(event(0, "skip", step=66, reason="budget", number=1))
    says(words({"event": "comet", "size_seconds": 61.0, "where": ["a", "b"]}), "comet", "1m 1s", "a, b")
    assert all(words({"event": kind}) for kind in _WORDS)


def test_the_journal_is_read_backward(month):
    assert list(events_backward(month)) == read_events(month)[::-1]


def test_the_page_has_its_plots_with_the_events_marked_and_needs_no_network(month, tmp_path):
    page = write_page(account_of(month), tmp_path).read_text()
    assert (tmp_path / "report-mine.html").is_file()
    plots = {re.sub("<.*?>", "", layout["title"]["text"]): lines for lines, layout in figures(page)}
    assert list(plots) == ["Loss", "Effective training time so far", "Where the time went", "Speed", "Saves"]
    marked = {line["name"]: line["x"][::3] for line in plots["Loss"] if line["line"].get("dash") == "dot"}
    assert marked == {
        "stopped": [43, 97],
        "stopped on request": [150],
        "bad batches": [64],
        "steps computed once more": [64],
        "rollbacks": [151],
    }
    share = plots["Effective training time so far"][0]["y"]
    assert share[-1] == pytest.approx(100 * 200 * STEP_SECONDS / 11300)
    assert not re.search(r"<(?:script|link|img)[^>]+(?:src|href)=", page)
    says(page, "exact 3/3", "Bad batches (1)")


def test_a_run_that_took_no_step_has_a_page_too(tmp_path):
    folder = write_month(tmp_path, events=EVENTS[:3])
    (folder / "metrics.jsonl").write_text("")
    assert len(figures(write_page(account_of(folder), tmp_path / "page.html").read_text())) <= 1
