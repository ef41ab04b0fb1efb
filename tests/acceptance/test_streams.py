"""Standard streams that say no: an exit code is that of what was done, and only what was asked for must be printed."""

import os
import subprocess
import sys

import pytest

from tests.commands import trainer
from tests.launching import Started, environment, outcome, write_recipe
from trainer import launcher
from trainer.cli import run
from trainer.config.load import dump, load
from trainer.ending.outcome_file import write_outcome

SAMPLE = "Enter Moli\u00e8re, \u2014 \udcff \U0001f600"


@pytest.fixture
def finished(tmp_path):
    """The recipe of a run that is finished, by its files alone; its sample is no ASCII."""
    recipe = write_recipe(tmp_path)
    folder = tmp_path / "runs" / "tiny"
    write_outcome(folder, "finished", step=24, reason="all 24 steps were taken", sample=SAMPLE)
    (folder / "config.yaml").write_text(dump(load(str(recipe)).config))
    (tmp_path / "checkpoints" / "tiny" / "step-00000024").mkdir(parents=True)
    return recipe


def shell(line: str, **variables: str) -> subprocess.CompletedProcess:
    """Runs a line of bash in which $T is `python -m trainer`."""
    command = ["bash", "-c", f'T="{sys.executable} -m trainer"; {line}']
    return subprocess.run(command, env=environment(**variables), capture_output=True, timeout=60, check=False)


@pytest.mark.parametrize(
    "variables", [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}, {"PYTHONIOENCODING": "utf-8"}]
)
def test_a_text_that_the_encoding_cannot_say_is_shown_with_escapes(finished, variables):
    ended = shell(f"$T report {finished.parent}/runs/tiny", **variables)
    assert (ended.returncode, ended.stderr) == (0, b"")
    said = ended.stdout.decode(variables["PYTHONIOENCODING"])
    assert said.encode(variables["PYTHONIOENCODING"])
    assert "Moli\u00e8re" in said or "Moli\\xe8re" in said


@pytest.mark.parametrize(
    ("output", "code", "said"),
    [("> /dev/full", 1, b"No space left on device"), (">&-", 0, b""), ("| true; exit ${PIPESTATUS[0]}", 141, b"")],
    ids=["full", "closed", "pipe"],
)
def test_what_was_asked_for_and_cannot_be_written_is_a_failure_in_a_paragraph(finished, output, code, said):
    ended = shell(f"$T report {finished.parent}/runs/tiny {output}")
    assert ended.returncode == code
    assert said in ended.stderr
    assert ended.stderr.count(b"\n") == (1 if said else 0)


@pytest.mark.parametrize(
    "output", ["> /dev/full", ">&-", "| true; exit ${PIPESTATUS[0]}", "2>&1 > /dev/full 2>&-", "<&- >&- 2>&-"]
)
def test_a_launch_ends_with_the_runs_own_code_wherever_its_report_goes(finished, output):
    ended = shell(f"$T launch cpu_2proc {finished} global_batch=8 {output}")
    assert ended.returncode == 0
    assert b"Traceback" not in ended.stderr + ended.stdout


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyError("loss"), UnicodeError("x")])
def test_a_report_that_cannot_be_made_takes_nothing_from_how_the_run_ended(finished, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(launcher, "run_launch", lambda *_: 75)
    monkeypatch.setattr(launcher, "is_finished", lambda plan: False)
    monkeypatch.setattr(run, "report_of", fail)
    said = trainer("launch", "cpu_2proc", str(finished))
    assert said.code == 75
    assert str(finished.parent / "runs" / "tiny" / "outcome.json") in said.err


def test_a_closed_stream_gives_its_number_to_no_file():
    script = "from trainer.streams import make_ready; make_ready(); f = open(__file__); raise SystemExit(f.fileno())"
    with_file = f"import sys; __file__ = {__file__!r}; {script}"
    ended = shell(f'{sys.executable} -c "{with_file}" <&- >&- 2>&-')
    assert ended.returncode >= 3


def close_output():
    os.close(1)
    sys.stdout = None


def fill_output():
    full = os.open("/dev/full", os.O_WRONLY)
    for number in (1, 2):
        os.dup2(full, number)


@pytest.mark.parametrize("sabotage", [close_output, fill_output])
def test_a_run_without_a_standard_output_is_finished_all_the_same(tmp_path, sabotage):
    recipe = write_recipe(tmp_path, max_steps=2, schedule={"warmup_steps": 0}, evaluation={"every_steps": 2})
    assert Started(recipe, (), 1, sabotage=sabotage).wait() == 0
    assert outcome(recipe)["outcome"] == "finished"


@pytest.mark.parametrize("words", ["--help", "launch --help"])
def test_help_that_nobody_reads_to_its_end_is_no_traceback(words):
    ended = shell(f"$T {words} | true; exit ${{PIPESTATUS[0]}}")
    assert ended.returncode in (0, 141)
    assert ended.stderr == b""
