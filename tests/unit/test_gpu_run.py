"""tests/gpu/run: what it writes down, what it believes again, what it starts, and how it judges. The measuring itself needs a GPU."""

import gzip
import json
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate.commands.launch import launch_command_parser

from tests.gpu import __main__ as command
from tests.gpu import gap, probe, record, resume, runs, share, speed, stall, suite, switch
from tests.gpu.record import Record, file_of, read
from tests.gpu.runs import Launched, Scene, cluster_of, words_of
from tests.gpu.table import NOT_YET, checks_table, passage
from tests.gpu.witness import Witness
from tests.launching import PROJECT
from trainer.config.cluster import MODES
from trainer.config.load import load
from trainer.precision.decide import Facts

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
    assert new(path).piece("current", fails) == FIRST and read(path)["pieces"] == {"current": FIRST}


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
    assert written["complete"] and written["pieces"] == {"current": FIRST}
    assert written["checks"][0] == {"name": "block can be measured", "value": "RuntimeError: CUDA error: something", "bar": "no error", "held": False}


def test_what_is_timed_or_compiled_works_in_the_thread_that_asks(path):
    """torch 2.11's compiler died of a signal in another."""
    assert new(path).piece("speed", lambda: {"thread": threading.get_ident()}) == {"thread": threading.get_ident()}


def test_a_part_without_a_check_is_not_held_and_one_that_dies_leaves_nothing_that_looks_finished(path):
    assert new(path).finish() is False
    first = new(path)
    first.check("share", 1.0, "at least 1", held=True)
    assert first.finish() and read(path)["complete"]
    new(path)
    assert not read(path)["complete"] and read(path)["checks"] == []


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
        "step 1600 current+block": {"ways": {"bf16": plain, "bf16 compiled": {"failed": "no compiler"}, "current": way, "block": {"not_applicable": "1600"}}},
        "linears 768 delayed": {"ways": {"delayed": way}}, "step 1600 delayed": {"ways": {"bf16": way, "delayed": way}},
    }  # fmt: skip
    file_of(folder, "share").write_text(json.dumps({**facts, "checks": checks, "pieces": {}, **changes}))
    file_of(folder, "speed").write_text(json.dumps({**facts, "checks": checks, "pieces": pieces}))
    return folder


def test_the_passage_shows_machine_checks_and_speeds_and_what_is_missing(tmp_path):
    text = passage(stored(tmp_path), ["share", "speed", "stall"])
    assert "Measured on NVIDIA H100 (driver 580), torch 2.11.0, TransformerEngine 2.20.2." in text and text.endswith("Not yet measured: stall.")
    assert "| share | current | 0.9991 | at least 0.99 | held |" in text and "| speed | current |" not in text
    rows = [line for line in text.splitlines() if line.startswith(("| linears", "| step"))]
    assert [row.split(" | ")[2] for row in rows] == ["delayed", "bf16", "bf16 compiled", "current", "block", "delayed"]
    assert rows[3].endswith("1.23 | 1.50 | 1.20 | 41% | 2.0 GB |") and rows[1].endswith("1.50 | unknown | unknown | 2.0 GB |")
    assert "n/a: 1600" in rows[4] and "failed: no compiler" in rows[2] and len({row.count("|") for row in rows}) == 1


def test_a_part_that_is_missing_or_cut_off_or_missed_its_bar_is_told(tmp_path):
    checks = [{"name": "current", "value": 0.5, "bar": "at least 0.99", "held": False}]
    text = checks_table({"share": read(file_of(stored(tmp_path, complete=False, checks=checks), "share")), "gap": None})
    assert "| share | current | 0.5 | at least 0.99 | **NOT held** |" in text
    assert "| share | | not finished | | **NOT held** |" in text and "| gap | | not finished | | **NOT held** |" in text


def test_without_a_result_the_passage_says_not_yet_measured_and_an_emulation_is_refused(tmp_path):
    assert passage(tmp_path, ["share"]) == NOT_YET
    with pytest.raises(AssertionError, match="holds an emulation"):
        passage(stored(tmp_path, emulated=True), ["share"])


# The command


def test_without_a_gpu_it_says_in_one_paragraph_what_it_needs(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, said = run(capsys, "share")
    assert code == 2 and said.startswith("error: ") and said.count("\n") == 1 and "--emulate" in said


def test_the_list_names_every_part_and_all_fit_into_half_an_hour(capsys):
    code, said, _ = run(capsys, "--list")
    assert code == 0 and [line.split()[0] for line in said.splitlines()] == list(command.PARTS)
    assert sum(part.minutes for part in command.PARTS.values()) <= 30 and max(part.minutes for part in command.PARTS.values()) < 10


def test_the_passage_is_printed(capsys, tmp_path):
    assert run(capsys, "--table", "--out", stored(tmp_path))[:2] == (0, passage(tmp_path, list(command.PARTS)) + "\n")


def test_a_python_without_torch_is_told_in_one_line(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    script = PROJECT / "tests" / "gpu" / "run"
    ended = subprocess.run([script, "--list"], env={**os.environ, "PYTHON": str(python)}, capture_output=True, text=True, check=False)
    assert ended.returncode == 2 and ended.stderr.startswith("error: ") and "has no torch" in ended.stderr and ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [([], "name a part"), (["nonsense"], "'nonsense' is not a part"), (["--emulate", "share", "--out", record.RESULTS], "an emulation is no result")],
)
def test_a_wrong_word_is_told(capsys, words, said):
    code, _, error = run(capsys, *words)
    assert code == 2 and said in error


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


@pytest.mark.parametrize(("parts", "code"), [(["probe", "share"], 1), (["probe", "gap"], 1), (["probe", "probe"], 0)])
def test_several_parts_run_apart_and_one_that_dies_or_hangs_hides_no_other(monkeypatch, capsys, tmp_path, parts, code):
    program = tmp_path / "python"
    program.write_text(PROGRAM.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setitem(command.PARTS, "gap", command.Part(0.01, "ends after two seconds"))
    found, said, _ = run(capsys, *parts, "--emulate", "--fresh", "--out", tmp_path, "--work", tmp_path)
    assert found == code and "| probe | it | 1 | 1 | held |" in said
    assert ("| share | | not finished | | **NOT held** |" in said) == ("share" in parts)
    assert ("gap: ended after" in said) == ("gap" in parts)
    if "gap" in parts:
        child = (tmp_path / "child").read_text()
        assert not command.psutil.pid_exists(int(child)) or command.psutil.Process(int(child)).status() == "zombie"


def test_a_part_that_is_told_to_end_takes_its_runs_with_it(monkeypatch):
    child, codes = subprocess.Popen(["sleep", "600"]), []
    monkeypatch.setattr(command.psutil, "Process", lambda: SimpleNamespace(children=lambda recursive: [child] if recursive else []))
    monkeypatch.setattr(command.os, "_exit", codes.append)
    command.end()
    assert child.wait(10) == -9 and codes == [143]


# What is started


def test_a_recipe_for_a_gpu_is_one_that_the_trainer_takes(tmp_path):
    scene = Scene(False, tmp_path)
    for family in runs.FAMILIES:
        model = runs.model_of(scene, family, width=768, layers=6, dropout=0.1)
        config = load(str(runs.recipe_of(scene, family, model, 40, precision={"recipe": "block"})), []).config
        assert config.data.corpus == "shakespeare" and config.micro_batch * config.sequence_length % 128 == 0
        assert {value % 128 for key, value in model.items() if key in ("n_embd", "hidden_size", "intermediate_size")} == {0}


def test_a_run_is_started_plainly_or_with_a_witness_or_through_accelerate_with_the_shipped_cluster_file(tmp_path):
    recipe = tmp_path / "tiny.yaml"
    assert words_of(recipe, ["a=1"])[1:] == ["-m", "trainer", "train", str(recipe), "a=1"]
    assert words_of(recipe, [], witness=tmp_path / "n")[1:] == ["-m", "tests.gpu.witness", str(tmp_path / "n"), "train", str(recipe)]
    cluster = cluster_of(tmp_path, "bf16")
    words = words_of(recipe, [], cluster=cluster)
    parsed = launch_command_parser().parse_args(words[words.index("--config_file") :])
    assert parsed.config_file == str(cluster) and parsed.training_script == "trainer" and parsed.module
    assert "mixed_precision: bf16" in cluster.read_text() and "dynamo" not in cluster.read_text()
    assert [yaml.safe_load(cluster_of(tmp_path, mode).read_text())["mixed_precision"] for mode in MODES] == list(MODES)


def test_on_a_gpu_a_run_is_a_process_that_is_told_its_precision(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(runs, "Launched", lambda words, output, environment: seen.append((words, environment)))
    scene = Scene(False, tmp_path)
    runs.start(scene, tmp_path / "tiny.yaml", precision="fp8")
    runs.start(scene, tmp_path / "tiny.yaml", precision="fp8", by_cluster=True)
    (plain, told), (launched, untold) = seen
    assert told["ACCELERATE_MIXED_PRECISION"] == "fp8" and "ACCELERATE_MIXED_PRECISION" not in untold
    assert plain[2] == "trainer" and launched[2] == "accelerate.commands.launch"


def test_a_process_ends_or_is_found_to_hang_and_is_killed(tmp_path, monkeypatch):
    python = [sys.executable, "-S", "-c"]
    failed = Launched([*python, "import os; print(os.environ['WORD']); raise SystemExit(3)"], tmp_path / "a", {"WORD": "said"})
    with pytest.raises(AssertionError, match="exit code 3: said\nsaid"):
        runs.ended(tmp_path / "tiny.yaml", failed)
    hangs = Launched([*python, "import time; time.sleep(600)"], tmp_path / "b", {})
    assert hangs.running
    monkeypatch.setattr(runs, "LIMIT_SECONDS", 0.2)
    with pytest.raises(AssertionError, match="did not end in 0.2 s"):
        runs.ended(tmp_path / "tiny.yaml", hangs)
    assert not hangs.running


def test_the_recipes_are_those_that_the_gpu_has(tmp_path, monkeypatch):
    blackwell = Facts("cuda", has_bf16=True, gpu="B200", capability=(10, 0), cuda=(13, 0))
    monkeypatch.setattr(runs, "look", lambda _: blackwell)
    names = [[recipe.name for recipe in Scene(emulated, tmp_path).recipes()] for emulated in (True, False)]
    assert names == [["current", "delayed", "block"], ["current", "delayed", "block", "mxfp8", "nvfp4"]]


# What is seen


class Layer(torch.nn.Linear):
    """A linear layer that says whether its last pass was in fp8, as TransformerEngine's do: only where it goes through TransformerEngine."""

    def __init__(self, passes):
        super().__init__(4, 8)
        self.fp8, self._passes = True, passes

    def forward(self, x):
        if self._passes is not None:
            self.fp8 = self._passes
        return super().forward(x)


def test_the_witness_counts_what_ran_in_fp8_and_not_what_was_converted():
    blocks = torch.nn.ModuleList(torch.nn.ModuleDict({"a": Layer(a), "b": Layer(b)}) for a, b in ((None, None), (True, False), (None, True)))
    model = torch.nn.ModuleDict({"blocks": blocks, "tokens": torch.nn.Embedding(3, 4)})
    witness = Witness(model["tokens"], blocks, first=1, last=0)
    for training in (True, False):
        model.train(training)
        hidden = model["tokens"](torch.zeros(2, 5, dtype=torch.long))
        for block in blocks:
            block["a"](hidden), block["b"](hidden)
    seen = witness.facts(flops_per_token=6 * 32 * 10)
    assert seen["of_chosen_blocks"] == 0.5 and seen["of_all_blocks"] == pytest.approx(1 / 3) and seen["of_all_matmuls"] == pytest.approx(0.2)
    assert seen["layers_seen"] == 6 and seen["not_in_fp8"] == ["1.b", "2.a"]


def test_the_busiest_kernels_are_read_from_the_profile(tmp_path):
    events = [{"cat": "kernel", "name": name, "dur": dur} for name, dur in (("e4m3", 2.0), ("norm", 3.0), ("e4m3", 4.0))]
    content = json.dumps({"traceEvents": [*events, {"cat": "cpu_op", "name": "aten::mm", "dur": 9.0}, {"ph": "M"}]})
    (tmp_path / "rank-0.pt.trace.json.gz").write_bytes(gzip.compress(content.encode()))
    assert share.kernels(tmp_path) == {"e4m3": 6.0, "norm": 3.0} and share.kernels(tmp_path, most=1) == {"e4m3": 6.0}


def test_a_way_that_fails_is_said_and_the_others_are_timed(tmp_path):
    found = speed.time_in_turn(Scene(True, tmp_path), {"bf16": lambda: None, "bf16 compiled": fails, "block": "1600"}, 1.0)
    assert found["bf16 compiled"] == {"failed": "RuntimeError: CUDA error: something"} and found["block"] == {"not_applicable": "1600"}
    assert found["bf16"]["over_bf16"] == 1.0 and "over_compiled" not in found["bf16"]
    part = Record(tmp_path / "part.json", "speed", emulated=True)
    speed._tell(part, "step", found)
    assert [(check["value"], check["held"]) for check in part.checks] == [("RuntimeError: CUDA error: something", False), ("n/a: 1600", True)]


def test_each_way_is_first_in_some_round():
    assert [speed._turned(["a", "b", "c"], number) for number in range(4)] == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"]]


# What is judged


def verdicts(tmp_path, monkeypatch, module, measured, found):
    """By check, whether it is held, when the part's work finds this for current scaling."""
    only_current = [recipe for recipe in Scene(True, tmp_path).recipes() if recipe.name == "current"]
    monkeypatch.setattr(Scene, "recipes", lambda scene: only_current)
    monkeypatch.setattr(module, measured, lambda *_, **__: found)
    monkeypatch.setattr(record, "hardware", lambda emulated: {})
    part = Record(tmp_path / "part.json", "part", emulated=False)
    module.measure(Scene(False, tmp_path), part)
    return {check["name"]: check["held"] for check in part.checks}


@pytest.mark.parametrize(("seen", "audited", "held"), [(0.99, 0.5, [True, True]), (0.98, 0.5, [False, True]), (1.0, 0.6, [True, False])])
def test_a_share_is_held_against_its_bar_and_against_the_audit(tmp_path, monkeypatch, seen, audited, held):
    found = {"of_chosen_blocks": seen, "of_all_matmuls": 0.5, "audited": audited}
    assert list(verdicts(tmp_path, monkeypatch, share, "_run", found).values()) == held * 2


@pytest.mark.parametrize(("training", "held"), [(2.009, True), (2.011, False), (1.989, False)])
def test_the_gap_of_every_seed_counts_to_either_side_and_rounding_alone_has_no_bar(tmp_path, monkeypatch, training, held):
    only_current = [recipe for recipe in Scene(True, tmp_path).recipes() if recipe.name == "current"]
    monkeypatch.setattr(Scene, "recipes", lambda scene: only_current)
    losses = {"bf16": 2.0, gap.NOISE: 3.0, "current": training}
    monkeypatch.setattr(gap, "_run", lambda scene, way, seed: {"training": losses[way] if seed == 2 else 2.0, "validation": 3.0})
    monkeypatch.setattr(record, "hardware", lambda emulated: {})
    part = Record(tmp_path / "gap.json", "gap", emulated=False)
    gap.measure(Scene(False, tmp_path), part)
    assert [check["held"] for check in part.checks] == [held, True, True, True] and "no bar" in part.checks[2]["bar"]
    assert gap._gap(None, {"training": 1.0}, "training") is None and gap._gap({"training": 1.0}, None, "training") is None


@pytest.mark.parametrize("wrong", [None, "weights are equal", "it was killed while it ran"])
def test_a_resume_that_differs_in_anything_is_told(tmp_path, monkeypatch, wrong):
    holds = dict.fromkeys(("it was killed while it ran", "weights are equal"), True)
    monkeypatch.setattr(resume, "_time", lambda *_, **__: {"step_seconds": 1.0})
    found = verdicts(tmp_path, monkeypatch, resume, "_kill", {"holds": {**holds, **({wrong: False} if wrong else {})}, "killed_after": 70})
    *killed, price = found.values()
    assert killed == [wrong is None] * 2 and price and "current gpt2: killed after step 70 and resumed" in found


@pytest.mark.parametrize(
    ("change", "missed"),
    [({}, None), ({"precisions": ["bf16"] * 3}, "precisions of the launches"), ({"holds": {"same": False}}, "same"),
     ({"largest_gap": 0.03}, "largest gap of a step's loss to bf16")],
)  # fmt: skip
def test_a_switch_that_loses_anything_is_told(tmp_path, monkeypatch, change, missed):
    found = {"precisions": ["fp8", "bf16", "fp8"], "holds": {"same": True}, "largest_gap": 0.001, **change}
    held = verdicts(tmp_path, monkeypatch, switch, "_switch", found)
    assert {name for name, value in held.items() if not value} == ({f"{family}: {missed}" for family in runs.FAMILIES} if missed else set())


@pytest.mark.parametrize(("mode", "held"), [("fp8", True), ("bf16", False)])
def test_a_recipe_that_the_gpu_has_and_that_is_not_decided_for_is_told_and_one_recipe_is_too_few(tmp_path, monkeypatch, mode, held):
    found = verdicts(tmp_path, monkeypatch, probe, "_decide", {"mode": mode, "sentence": mode})
    assert found == {"current is decided for": held, "recipes that this GPU has": False}


# The parts that other programs measure


BENCHMARK = """
import json, sys
assert sys.argv[1:4] == ["60", "--cuda", "--json"], sys.argv
open(sys.argv[4], "w").write(json.dumps({"checks": {"p50 seconds": 0.019, "p99 seconds": 0.31}}))
"""


@pytest.mark.parametrize(("program", "held"), [(BENCHMARK, [True, False]), ("raise SystemExit('no room')", [False])])
def test_the_stall_of_a_save_is_that_of_its_benchmark_or_what_it_died_of(tmp_path, monkeypatch, capsys, program, held):
    (tmp_path / "stall.py").write_text(program)
    monkeypatch.setattr(stall, "BENCHMARK", tmp_path / "stall.py")
    part = Record(tmp_path / "stall.json", "stall", emulated=True)
    stall.measure(Scene(False, tmp_path / "work"), part)
    assert [check["held"] for check in part.checks] == held
    assert len(held) == 2 or "no room" in capsys.readouterr().out


TESTS = """
import pytest
def test_passes(): pass
def test_fails(): assert False
def test_is_skipped(): pytest.skip("why")
"""


def test_a_test_that_fails_on_the_gpu_is_told_by_name(tmp_path, monkeypatch):
    (tmp_path / "tests" / "gpu").mkdir(parents=True)
    (tmp_path / "tests" / "gpu" / "test_it.py").write_text(TESTS)
    monkeypatch.setattr(suite, "PROJECT", tmp_path)
    part = Record(tmp_path / "suite.json", "suite", emulated=True)
    suite.measure(Scene(False, tmp_path / "work"), part)
    assert part.pieces["pytest"] == {"passed": 1, "failed": ["test_fails"], "skipped": ["test_is_skipped"]}
    assert [check["held"] for check in part.checks] == [False, True]
