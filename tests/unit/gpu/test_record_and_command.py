"""tests/gpu/run: what it writes down, what it believes again, what it shows, and its command line."""

import functools
import json
import os
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import psutil
import pytest
import torch

from tests.gpu import __main__ as command
from tests.gpu import record
from tests.gpu.record import Record, file_of, read
from tests.gpu.table import NOT_YET, checks_table, passage
from tests.launching import PROJECT
from tests.messages import says

FIRST, SECOND = {"speed": 1.0}, {"speed": 2.0}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results" / "gpu_share.json"


def new(path, **changes):
    return Record(path, "share", **{"emulated": True, **changes})


def fails():
    raise RuntimeError("CUDA error: something")


def run(capsys, *words):
    """Exit code, standard output and standard error of tests/gpu/run."""
    try:
        code = command.main([str(word) for word in words])
    except SystemExit as end:
        code = end.code
    return code, *capsys.readouterr()


# What is written down


def test_a_piece_is_measured_once_and_goes_on_after_a_cut(path):
    assert new(path).piece("current", lambda: FIRST) == FIRST
    assert not read(path)["complete"]
    assert new(path).piece("current", fails) == FIRST
    assert new(path, fresh=True).piece("current", lambda: SECOND) == SECOND


def test_a_part_goes_on_from_the_stored_results_where_its_folder_has_none(path, monkeypatch, tmp_path):
    monkeypatch.setattr(record, "RESULTS", tmp_path / "stored")
    new(file_of(tmp_path / "stored", "share")).piece("current", lambda: FIRST)
    assert new(path).piece("current", fails) == FIRST
    assert read(path)["pieces"] == {"current": FIRST}


@pytest.mark.parametrize("what", ["hardware", "versions", "sources"])
def test_a_piece_of_other_hardware_versions_or_sources_is_measured_anew(path, monkeypatch, what):
    new(path).piece("current", lambda: FIRST)
    monkeypatch.setattr(record, what, lambda *_: "other")
    assert new(path).piece("current", lambda: SECOND) == SECOND


def test_an_emulation_is_never_taken_for_a_measurement(path, monkeypatch):
    monkeypatch.setattr(record, "hardware", lambda emulated: {})
    new(path).piece("current", lambda: FIRST)
    assert new(path, emulated=False).piece("current", lambda: SECOND) == SECOND


def test_a_piece_that_fails_is_a_check_that_is_not_held_and_hides_no_other(path):
    part = new(path)
    assert part.side_by_side({"block": fails, "current": lambda: FIRST}, 2) == {"block": None, "current": FIRST}
    part.check("share", 1.0, "at least 1", held=True)
    assert part.finish() is False
    written = read(path)
    assert written["complete"]
    assert written["pieces"] == {"current": FIRST}
    assert written["checks"][0] == {
        "name": "block can be measured",
        "value": "RuntimeError: CUDA error: something",
        "bar": "no error",
        "held": False,
    }


def test_what_is_timed_or_compiled_works_in_the_thread_that_asks(path):
    """torch 2.11's compiler died of a signal in another."""
    assert new(path).piece("speed", lambda: {"thread": threading.get_ident()}) == {"thread": threading.get_ident()}


def test_a_part_without_a_check_is_not_held_and_one_that_dies_leaves_nothing_that_looks_finished(path):
    assert new(path).finish() is False
    first = new(path)
    first.check("share", 1.0, "at least 1", held=True)
    assert first.finish()
    assert read(path)["complete"]
    new(path)
    assert not read(path)["complete"]
    assert read(path)["checks"] == []


def test_the_digest_of_the_sources_is_a_parts_own(monkeypatch):
    before = record.sources("share")
    assert before == record.sources("share") != record.sources("gap")
    monkeypatch.setattr(record, "SHARED_SOURCES", record.SHARED_SOURCES[1:])
    assert record.sources("share") != before


# What is shown


def stored(folder, **changes):
    folder.mkdir(exist_ok=True)
    facts = {"emulated": False, "complete": True, "hardware": {"device": "NVIDIA H100", "driver": "580"}}
    facts["versions"] = {"torch": "2.11.0", "transformer_engine": "2.20.2"}
    checks = [{"name": "current", "value": 0.99912345, "bar": "at least 0.99", "held": True}]
    way = {"milliseconds": 1.234, "over_bf16": 1.5, "over_compiled": 1.2, "mfu_of_bf16_peak": 0.41, "peak_bytes": 2e9}
    plain = {key: value for key, value in way.items() if key not in ("over_compiled", "mfu_of_bf16_peak")}
    pieces = {
        "step 1600 current+block": {
            "ways": {
                "bf16": plain,
                "bf16 compiled": {"failed": "no compiler"},
                "current": way,
                "block": {"not_applicable": "1600"},
            }
        },
        "linears 768 delayed": {"ways": {"delayed": way}},
        "step 1600 delayed": {"ways": {"bf16": way, "delayed": way}},
    }
    file_of(folder, "share").write_text(json.dumps({**facts, "checks": checks, "pieces": {}, **changes}))
    file_of(folder, "speed").write_text(json.dumps({**facts, "checks": checks, "pieces": pieces}))
    return folder


def test_the_passage_shows_machine_checks_and_speeds_and_what_is_missing(tmp_path):
    text = passage(stored(tmp_path), ["share", "speed", "stall"])
    assert "Measured on NVIDIA H100 (driver 580), torch 2.11.0, TransformerEngine 2.20.2." in text
    assert text.endswith("Not yet measured: stall.")
    assert "| share | current | 0.9991 | at least 0.99 | held |" in text
    assert "| speed | current |" not in text
    rows = [line for line in text.splitlines() if line.startswith(("| linears", "| step"))]
    assert [row.split(" | ")[2] for row in rows] == ["delayed", "bf16", "bf16 compiled", "current", "block", "delayed"]
    assert rows[3].endswith("1.23 | 1.50 | 1.20 | 41% | 2.0 GB |")
    assert rows[1].endswith("1.50 | unknown | unknown | 2.0 GB |")
    assert "n/a: 1600" in rows[4]
    assert "failed: no compiler" in rows[2]
    assert len({row.count("|") for row in rows}) == 1


def test_a_part_that_is_missing_or_cut_off_or_missed_its_bar_is_told(tmp_path):
    checks = [{"name": "current", "value": 0.5, "bar": "at least 0.99", "held": False}]
    text = checks_table({"share": read(file_of(stored(tmp_path, complete=False, checks=checks), "share")), "gap": None})
    assert "| share | current | 0.5 | at least 0.99 | **NOT held** |" in text
    assert "| share | | not finished | | **NOT held** |" in text
    assert "| gap | | not finished | | **NOT held** |" in text


def test_without_a_result_the_passage_says_not_yet_measured_and_an_emulation_is_refused(tmp_path):
    assert passage(tmp_path, ["share"]) == NOT_YET
    with pytest.raises(AssertionError, match="holds an emulation"):
        passage(stored(tmp_path, emulated=True), ["share"])


# The command


def test_without_a_gpu_it_says_in_one_paragraph_what_it_needs(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, said = run(capsys, "share")
    assert code == 2
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert "--emulate" in said


def test_the_list_names_every_part_first_the_first_and_each_takes_less_than_a_command_may(capsys):
    code, said, _ = run(capsys, "--list")
    assert code == 0
    assert [line.split()[0] for line in said.splitlines()] == list(command.PARTS)
    assert sum(part.minutes for part in command.PARTS.values()) <= 45
    assert max(part.minutes for part in command.PARTS.values()) < 10
    assert list(command.PARTS)[0] == "first"
    assert command.PARTS["first"].minutes <= 9


def test_the_passage_is_printed(capsys, tmp_path):
    assert run(capsys, "--table", "--out", stored(tmp_path))[:2] == (0, passage(tmp_path, list(command.PARTS)) + "\n")


def test_a_python_without_torch_is_told_in_one_line(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    script = PROJECT / "tests" / "gpu" / "run"
    ended = subprocess.run(
        [script, "--list"], env={**os.environ, "PYTHON": str(python)}, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ")
    says(ended.stderr, "torch")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "part"),
        (["nonsense"], "'nonsense'"),
        (["--emulate", "share", "--out", record.RESULTS], "emulation"),
    ],
)
def test_a_wrong_word_is_told(capsys, words, said):
    code, _, error = run(capsys, *words)
    assert code == 2
    assert said in error


PROGRAM = """#!{python}
import json, subprocess, sys, time
part, out = sys.argv[3], sys.argv[5]
assert sys.argv[1:3] == ["-m", "tests.gpu"] and sys.argv[6] == "--work" and sys.argv[8:] == ["--fresh", "--emulate"], sys.argv
held = {{"name": "it", "value": 1, "bar": "1", "held": True}}
if part == "probe":
    open(out + "/gpu_probe.json", "w").write(json.dumps({{"complete": True, "checks": [held]}}))
elif part == "share":
    sys.exit("it dies")
else:
    child = subprocess.Popen(["sleep", "600"])
    open(out + "/child", "w").write(str(child.pid))
    child.wait()
"""


def _impatient(popen, child, words):
    """Starts a part; the one that hangs is out of time once it has started something, however long that takes here."""
    process = popen(words)
    if words[3] == "gap":
        wait = process.wait

        def out_of_time(timeout=None):
            while timeout and not (child.exists() and child.read_text()):
                time.sleep(0.02)
            return wait(timeout and 0.01)

        process.wait = out_of_time
    return process


def _runs(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(("parts", "code"), [(["probe", "share"], 1), (["probe", "gap"], 1), (["probe", "probe"], 0)])
def test_several_parts_run_apart_and_one_that_dies_or_hangs_hides_no_other(monkeypatch, capsys, tmp_path, parts, code):
    program = tmp_path / "python"
    program.write_text(PROGRAM.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(
        command.psutil, "Popen", functools.partial(_impatient, command.psutil.Popen, tmp_path / "child")
    )
    found, said, _ = run(capsys, *parts, "--emulate", "--fresh", "--out", tmp_path, "--work", tmp_path)
    assert found == code
    assert "| probe | it | 1 | 1 | held |" in said
    assert ("| share | | not finished | | **NOT held** |" in said) == ("share" in parts)
    assert ("gap: ended after" in said) == ("gap" in parts)
    if "gap" in parts:
        child, ends = int((tmp_path / "child").read_text()), time.monotonic() + 30
        while _runs(child):
            assert time.monotonic() < ends
            time.sleep(0.02)


def test_a_part_that_is_told_to_end_takes_its_runs_with_it(monkeypatch):
    child, codes = subprocess.Popen(["sleep", "600"]), []
    monkeypatch.setattr(
        command.psutil, "Process", lambda: SimpleNamespace(children=lambda recursive: [child] if recursive else [])
    )
    monkeypatch.setattr(command.os, "_exit", codes.append)
    command.end()
    assert child.wait(10) == -9
    assert codes == [143]
