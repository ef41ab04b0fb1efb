"""The bar says what is known in one line that fits its terminal; where there is none there is none."""

import io
import logging
import re
import time

import pytest
from rich.console import Console

from tests.messages import logged
from trainer.metrics import console as module
from trainer.metrics.console import ProgressBar, Standing, TerminalHandler, bar_line, clock_time

NOW = time.mktime((2026, 3, 5, 14, 0, 0, 0, 0, -1))
STANDING = Standing(
    120,
    420,
    loss=4.12345,
    tokens_per_second=5760.0,
    mfu=0.412,
    ends_at=NOW + 86400 + 1200,
    saved_at=NOW - 12,
    busy="evaluating",
    busy_since=NOW - 3,
)
PARTS = [
    "step 120/420",
    "28.6%",
    "loss 4.1235",
    "5.76k tokens/s",
    "mfu 41.2%",
    "1d 0h left",
    "ends Fri 14:20",
    "saved 12s ago",
    "evaluating 3s",
]


def line(width, standing=STANDING, **settings):
    return bar_line(standing, width, NOW, settings.pop("clock", NOW), **settings).plain


def test_a_wide_terminal_shows_everything_in_one_order():
    said = line(200)
    assert re.split(r"  +", re.sub(r"[\u2500\u2501]+  ", "", said)) == PARTS
    assert (said.count("\u2501"), said.count("\u2500")) == (11, 29), "120 of 420 on 40 columns"


@pytest.mark.parametrize("width", range(1, 200))
def test_a_line_fits_whatever_the_width(width):
    said = line(width)
    assert len(said) <= width
    assert width < 12 or said.startswith("step 120/420")
    kept = [part for part in PARTS if part in said]
    rest = said
    for part in kept:
        rest = rest.replace(part, "", 1)
    assert width < 12 or set(rest) <= {" ", "\u2500", "\u2501"}, "no part is cut"


def test_what_is_needed_least_is_left_out_first():
    quiet = Standing(
        120, 420, loss=4.12345, tokens_per_second=5760.0, mfu=0.412, ends_at=NOW + 86400 + 1200, saved_at=NOW - 12
    )
    kept = {
        width: [part.split()[0] for part in PARTS if part in line(width, quiet)] for width in (30, 60, 80, 100, 120)
    }
    assert kept[30] == ["step", "loss"]
    assert kept[60] == ["step", "28.6%", "loss", "5.76k", "1d"]
    assert kept[80] == ["step", "28.6%", "loss", "5.76k", "1d"]
    assert "\u2501" in line(80, quiet)
    assert (
        set(kept[80])
        < set(kept[100])
        < set(kept[120])
        == {"step", "28.6%", "loss", "5.76k", "mfu", "1d", "ends", "saved"}
    )
    assert "evaluating 3s" in line(30)


def test_what_is_not_known_is_not_said():
    assert re.sub(r"\u2500+  ", "", line(100, Standing(0, 420))) == "step 0/420  0.0%"


def test_a_terminal_without_unicode_gets_a_bar_of_ascii():
    assert line(200, ascii_only=True).isascii()
    assert "#" * 11 + "." * 29 in line(200, ascii_only=True)


def test_a_run_that_went_over_its_end_has_a_full_bar_and_no_time_below_zero():
    said = line(100, Standing(500, 420, ends_at=NOW - 5))
    assert "\u2500" not in said
    assert "0s left" in said


def test_the_time_it_ends_has_a_date_where_a_weekday_would_not_say_which():
    assert clock_time(NOW + 5 * 86400, NOW) == "Tue 14:00"
    assert clock_time(NOW + 30 * 86400, NOW).startswith("04 Apr 1")


# On a terminal


class Terminal(io.StringIO):
    """A terminal that keeps what is written to it, and can go away."""

    gone = False
    encoding = "utf-8"

    def write(self, text):
        if self.gone:
            raise OSError(5, "Input/output error")
        return super().write(text)


@pytest.fixture
def terminal():
    return Terminal()


@pytest.fixture
def console(terminal):
    return Console(file=terminal, force_terminal=True, width=90, color_system="standard")


@pytest.fixture
def bar(console, monkeypatch):
    monkeypatch.setattr(module, "REFRESH_HZ", 0.01)  # drawn when the test says so
    bar = ProgressBar(420, console)
    yield bar
    bar.close()


def drawn(bar, terminal):
    """The newest line on the terminal, without colours."""
    bar.draw()
    return re.split(r"\r|\n", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue()))[-1]


def test_the_bar_follows_what_it_is_told(bar, terminal):
    assert re.search(r"step 0/420 .*starting 0s$", drawn(bar, terminal))
    bar.update(42, loss=3.5, tokens_per_second=5760.0, seconds_left=90.0)
    assert re.search(
        r"^step 42/420 .* 10\.0%  loss 3\.5000  5\.76k tokens/s  1m \d\ds left  ends \w\w\w \d\d:\d\d$",
        drawn(bar, terminal),
    )
    bar.busy("evaluating")
    assert "loss 3.5000" in drawn(bar, terminal)
    assert drawn(bar, terminal).endswith("evaluating 0s")
    bar.saved()
    bar.update(43, loss=3.4)
    assert re.search(r"loss 3\.4000  saved 0s ago$", drawn(bar, terminal)), "what went on has ended, the save stays"


def test_a_clock_that_is_set_meanwhile_changes_no_age_and_only_the_time_at_which_the_run_ends(
    bar, terminal, monkeypatch
):
    """It begins at 0, as on a board without a battery, and is set once the network is there."""
    monkeypatch.setattr(module.time, "time", lambda: 0.0)
    bar.saved()
    bar.update(42, seconds_left=90.0)
    bar.busy("evaluating")
    monkeypatch.setattr(module.time, "time", lambda: NOW)
    said = drawn(bar, terminal)
    assert re.search(r" 1m \d\ds left ", said)
    assert f"ends {clock_time(NOW + 80, NOW)}" in said
    assert "saved 0s ago" in said
    assert said.endswith("evaluating 0s")


def test_a_terminal_that_changes_its_width_gets_a_line_that_fits(bar, console, terminal):
    bar.update(42, loss=3.5, tokens_per_second=5760.0, seconds_left=90.0)
    for width in (60, 200, 31):
        console.width = width
        assert len(drawn(bar, terminal)) < width
    assert drawn(bar, terminal) == "step 42/420  loss 3.5000"


def record(level, message):
    return logging.LogRecord("trainer", level, "", 0, message, (), None)


def test_log_lines_scroll_above_the_bar_and_are_whole(bar, console, terminal):
    bar.update(42, loss=3.5)
    drawn(bar, terminal)
    handler, long = TerminalHandler(console), "a line [of] " + "x" * 100
    handler.emit(record(logging.INFO, long))
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert f"\r{long}\n" in plain
    assert plain.split("\n")[-1].startswith("step 42/420")


def test_warnings_and_errors_have_a_colour(bar, console, terminal):
    handler = TerminalHandler(console)
    for level in (logging.INFO, logging.WARNING, logging.ERROR):
        handler.emit(record(level, f"message {level}"))
    assert "\x1b[33mmessage 30\x1b[0m" in terminal.getvalue()
    assert "\x1b[1;31mmessage 40\x1b[0m" in terminal.getvalue()
    assert "message 20\n" in terminal.getvalue()
    assert "mmessage 20" not in terminal.getvalue()


def test_a_terminal_that_is_gone_does_not_stop_the_log(bar, console, terminal, monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)  # as a run has it
    terminal.gone = True
    TerminalHandler(console).emit(record(logging.INFO, "a line"))


def test_where_there_is_no_terminal_lines_are_plain(monkeypatch):
    monkeypatch.setattr(module, "CONSOLE", Console(file=io.StringIO()))
    assert type(module.console_handler()) is logging.StreamHandler
    monkeypatch.setattr(module, "CONSOLE", Console(file=io.StringIO(), force_terminal=True))
    assert type(module.console_handler()) is TerminalHandler


def test_a_bar_that_is_closed_leaves_no_line_and_may_be_told_more(bar, terminal):
    bar.close()
    assert terminal.getvalue().endswith("\x1b[2K")
    until = len(terminal.getvalue())
    bar.update(43, loss=3.5)
    bar.busy("saving")
    bar.saved()
    bar.close()
    assert len(terminal.getvalue()) == until


def test_a_terminal_that_is_gone_does_not_fail_the_run(bar, terminal, caplog):
    terminal.gone = True
    bar.close()
    logged(caplog, "Input/output error", "train.log")


def test_without_a_terminal_there_is_no_bar():
    out = io.StringIO()
    bar = ProgressBar(420, Console(file=out))
    bar.update(42, loss=3.5)
    bar.busy("saving")
    bar.saved()
    bar.close()
    assert out.getvalue() == ""
