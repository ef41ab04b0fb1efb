"""The parts of tests/gpu/run: what they start, what they see, and how they judge. The measuring itself needs a GPU."""

import gzip
import json
import re
import sys
import time
import warnings
from types import SimpleNamespace

import psutil
import pytest
import torch
import yaml
from accelerate.commands.launch import launch_command_parser

from tests.gpu import first, gap, probe, record, resume, runs, share, speed, stall, suite, switch, syncs
from tests.gpu.record import Record
from tests.gpu.runs import Launched, Scene, cluster_of, words_of
from tests.gpu.witness import Witness
from tests.launching import PROJECT
from trainer import loop
from trainer.config.cluster_keys import MODES
from trainer.config.load import load
from trainer.precision.decide import Facts


def fails():
    raise RuntimeError("CUDA error: something")


# What is started


def test_a_recipe_for_a_gpu_is_one_that_the_trainer_takes(tmp_path):
    scene = Scene(False, tmp_path)
    for family in runs.FAMILIES:
        model = runs.model_of(scene, family, width=768, layers=6, dropout=0.1)
        config = load(str(runs.recipe_of(scene, family, model, 40, precision={"recipe": "block"})), []).config
        assert config.data.corpus == "shakespeare"
        assert config.micro_batch * config.sequence_length % 128 == 0
        assert {
            value % 128 for key, value in model.items() if key in ("n_embd", "hidden_size", "intermediate_size")
        } == {0}


def test_a_run_is_started_through_accelerate_with_the_shipped_cluster_file_as_it_is(tmp_path):
    recipe = tmp_path / "tiny.yaml"
    for precision in MODES:
        cluster = cluster_of(tmp_path, precision)
        words = words_of(recipe, ["a=1"], cluster)
        parsed = launch_command_parser().parse_args(words[words.index("--config_file") :])
        assert parsed.config_file == str(cluster)
        assert parsed.training_script == "trainer"
        assert parsed.module
        content = yaml.safe_load(cluster.read_text())
        assert content["mixed_precision"] == precision
        assert content["dynamo_config"]["dynamo_backend"] == "INDUCTOR"
        assert (cluster.parent == tmp_path) == (precision in ("no", "fp16")), "bf16 and fp8 are shipped"
    watched = words_of(recipe, [], cluster, watched=("witness", tmp_path / "n"))
    assert watched[-5:] == ["-m", "tests.gpu.witness", str(tmp_path / "n"), "train", str(recipe)]


def test_on_a_gpu_a_run_is_a_launch_and_its_precision_stands_in_its_cluster_file(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(runs, "Launched", lambda words, output, environment: seen.append((words, environment)))
    scene = Scene(False, tmp_path)
    runs.start(scene, tmp_path / "tiny.yaml", precision="fp8")
    runs.start(scene, tmp_path / "tiny.yaml", precision="bf16", syncs=tmp_path / "waits.json")
    for (words, environment), precision in zip(seen, ("fp8", "bf16"), strict=True):
        assert words[2] == "accelerate.commands.launch"
        assert words[4].endswith(f"accelerate_configs/1gpu_{precision}.yaml")
        assert "ACCELERATE_MIXED_PRECISION" not in environment
    assert "tests.gpu.syncs" in seen[1][0]


def test_a_launch_is_killed_with_the_rank_that_it_started(tmp_path):
    program = "import subprocess, sys, time; child = subprocess.Popen(['sleep', '600']); print(child.pid, flush=True); time.sleep(600)"
    run = Launched([sys.executable, "-S", "-c", program], tmp_path / "output", {})
    ends = time.monotonic() + 60
    while not run.text().strip() and time.monotonic() < ends:
        time.sleep(0.02)
    rank = psutil.Process(int(run.text()))
    run.kill()
    assert not run.running
    assert not rank.is_running() or rank.status() == psutil.STATUS_ZOMBIE


def test_a_process_ends_or_is_found_to_hang_and_is_killed(tmp_path, monkeypatch):
    python = [sys.executable, "-S", "-c"]
    failed = Launched(
        [*python, "import os; print(os.environ['WORD']); raise SystemExit(3)"], tmp_path / "a", {"WORD": "said"}
    )
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
    monkeypatch.setattr(runs, "probe_device", lambda _: blackwell)
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
    blocks = torch.nn.ModuleList(
        torch.nn.ModuleDict({"a": Layer(a), "b": Layer(b)}) for a, b in ((None, None), (True, False), (None, True))
    )
    model = torch.nn.ModuleDict({"blocks": blocks, "tokens": torch.nn.Embedding(3, 4)})
    witness = Witness(model["tokens"], blocks, first=1, last=0)
    for training in (True, False):
        model.train(training)
        hidden = model["tokens"](torch.zeros(2, 5, dtype=torch.long))
        for block in blocks:
            block["a"](hidden), block["b"](hidden)
    seen = witness.facts(flops_per_token=6 * 32 * 10)
    assert seen["of_chosen_blocks"] == 0.5
    assert seen["of_all_blocks"] == pytest.approx(1 / 3)
    assert seen["of_all_matmuls"] == pytest.approx(0.2)
    assert seen["layers_seen"] == 6
    assert seen["not_in_fp8"] == ["1.b", "2.a"]


def test_the_busiest_kernels_are_read_from_the_profile(tmp_path):
    events = [
        {"cat": "kernel", "name": name, "dur": dur} for name, dur in (("e4m3", 2.0), ("norm", 3.0), ("e4m3", 4.0))
    ]
    content = json.dumps({"traceEvents": [*events, {"cat": "cpu_op", "name": "aten::mm", "dur": 9.0}, {"ph": "M"}]})
    (tmp_path / "rank-0.pt.trace.json.gz").write_bytes(gzip.compress(content.encode()))
    assert share.kernels(tmp_path) == {"e4m3": 6.0, "norm": 3.0}
    assert share.kernels(tmp_path, most=1) == {"e4m3": 6.0}


def test_a_way_that_fails_is_said_and_the_others_are_timed(tmp_path):
    found = speed.time_in_turn(
        Scene(True, tmp_path), {"bf16": lambda: None, "bf16 compiled": fails, "block": "1600"}, 1.0
    )
    assert found["bf16 compiled"] == {"failed": "RuntimeError: CUDA error: something"}
    assert found["block"] == {"not_applicable": "1600"}
    assert found["bf16"]["over_bf16"] == 1.0
    assert "over_compiled" not in found["bf16"]
    part = Record(tmp_path / "part.json", "speed", emulated=True)
    speed._tell(part, "step", found)
    assert [(check["value"], check["held"]) for check in part.checks] == [
        ("RuntimeError: CUDA error: something", False),
        ("n/a: 1600", True),
    ]


def test_each_way_is_first_in_some_round():
    assert [speed._turned(["a", "b", "c"], number) for number in range(4)] == [
        ["a", "b", "c"],
        ["b", "c", "a"],
        ["c", "a", "b"],
        ["a", "b", "c"],
    ]


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


@pytest.mark.parametrize(
    ("seen", "audited", "held"), [(0.99, 0.5, [True, True]), (0.98, 0.5, [False, True]), (1.0, 0.6, [True, False])]
)
def test_a_share_is_held_against_its_bar_and_against_the_audit(tmp_path, monkeypatch, seen, audited, held):
    found = {"of_chosen_blocks": seen, "of_all_matmuls": 0.5, "audited": audited}
    assert list(verdicts(tmp_path, monkeypatch, share, "_run", found).values()) == held * 2


@pytest.mark.parametrize(("training", "held"), [(2.009, True), (2.011, False), (1.989, False)])
def test_the_gap_of_every_seed_counts_to_either_side_and_rounding_alone_has_no_bar(
    tmp_path, monkeypatch, training, held
):
    only_current = [recipe for recipe in Scene(True, tmp_path).recipes() if recipe.name == "current"]
    monkeypatch.setattr(Scene, "recipes", lambda scene: only_current)
    losses = {"bf16": 2.0, gap.NOISE: 3.0, "current": training}
    monkeypatch.setattr(
        gap, "_run", lambda scene, way, seed: {"training": losses[way] if seed == 2 else 2.0, "validation": 3.0}
    )
    monkeypatch.setattr(record, "hardware", lambda emulated: {})
    part = Record(tmp_path / "gap.json", "gap", emulated=False)
    gap.measure(Scene(False, tmp_path), part)
    assert [check["held"] for check in part.checks] == [held, True, True, True]
    assert "no bar" in part.checks[2]["bar"]
    assert gap._gap(None, {"training": 1.0}, "training") is None
    assert gap._gap({"training": 1.0}, None, "training") is None


@pytest.mark.parametrize("wrong", [None, "weights are equal", "it was killed while it ran"])
def test_a_resume_that_differs_in_anything_is_told(tmp_path, monkeypatch, wrong):
    holds = dict.fromkeys(("it was killed while it ran", "weights are equal"), True)
    monkeypatch.setattr(resume, "_time", lambda *_, **__: {"step_seconds": 1.0})
    found = verdicts(
        tmp_path,
        monkeypatch,
        resume,
        "_kill",
        {"holds": {**holds, **({wrong: False} if wrong else {})}, "killed_after": 70},
    )
    *killed, price = found.values()
    assert killed == [wrong is None] * 2
    assert price
    assert "current gpt2: killed after step 70 and resumed" in found


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        ({}, None),
        ({"precisions": ["bf16"] * 3}, "precisions of the launches"),
        ({"holds": {"same": False}}, "same"),
        ({"largest_gap": 0.03}, "largest gap of a step's loss to bf16"),
    ],
)
def test_a_switch_that_loses_anything_is_told(tmp_path, monkeypatch, change, missed):
    found = {"precisions": ["fp8", "bf16", "fp8"], "holds": {"same": True}, "largest_gap": 0.001, **change}
    held = verdicts(tmp_path, monkeypatch, switch, "_switch", found)
    assert {name for name, value in held.items() if not value} == (
        {f"{family}: {missed}" for family in runs.FAMILIES} if missed else set()
    )


@pytest.mark.parametrize(("mode", "held"), [("fp8", True), ("bf16", False)])
def test_a_recipe_that_the_gpu_has_and_that_is_not_decided_for_is_told_and_one_recipe_is_too_few(
    tmp_path, monkeypatch, mode, held
):
    found = verdicts(tmp_path, monkeypatch, probe, "_decide", {"mode": mode, "sentence": mode})
    assert found == {"current is decided for": held, "recipes that this GPU has": False}


# The first visit


def judged(**changes):
    """By name, the verdicts on a visit that found everything well but for what is changed."""
    run = {
        "fastest_after_pause": 1.0,
        "largest_mfu": 0.4,
        "graphs": 2,
        "sort_share": 0.0,
        "mfu": 0.4,
        "step_seconds": 0.11,
    }
    run |= {"head": "one compiled kernel, bfloat16, 16384 tokens a chunk", "passes": []}
    well = {
        "attention": {"strict_is_exact": True, "warn_only_is_exact": False},
        "waits": {"steps": 3, "waits": {}},
        "resume": {"holds": {"weights are equal": True}, "killed_after": 35},
        "run": run,
        "free": {"step_seconds": 0.1, "mfu": 0.41},
    }
    for name, values in changes.items():
        well[name] = {**well[name], **values}
    return {verdict.name: verdict for verdict in first.judge(well)}


def test_a_first_visit_that_finds_everything_well_holds_and_tells_the_price():
    verdicts = judged()
    assert all(verdict.held for verdict in verdicts.values())
    assert verdicts["what deterministic: true costs of a step"].value == pytest.approx(0.1)
    assert first.judge({}) == [], "what could not be measured is told by the record"


@pytest.mark.parametrize(
    ("changes", "name", "rows"),
    [
        (
            {"attention": {"strict_is_exact": False}},
            "attention's backward is exact as `deterministic` asks for it",
            "row 1",
        ),
        ({"waits": {"waits": {"transformers/masking_utils.py:776": 6}}}, "waits of the host in three steps", "row 4"),
        (
            {"waits": {"waits": {"optim/build.py:72": 3, "model/head.py:165": 54}}},
            "waits of the host in three steps",
            "row 11, row 3",
        ),
        ({"waits": {"waits": {"nn/clip.py:7": 3}}}, "waits of the host in three steps", "nn/clip.py:7"),
        (
            {"resume": {"holds": {"weights are equal": False}}},
            "killed and resumed, bf16 and compiled",
            "rows 1, 3 and 9",
        ),
        ({"run": {"fastest_after_pause": 0.1}}, "fastest step after a pause, over the median", "row 5"),
        ({"run": {"largest_mfu": 1.7}}, "fastest step after a pause, over the median", "row 5"),
        (
            {"run": {"head": "passes, bfloat16, 6592 tokens a chunk, which is slower, because"}},
            "the way of the head",
            "row 2",
        ),
        ({"run": {"passes": ["cunn_SoftMaxForward"]}}, "passes over the logits in a training step", "row 2"),
        ({"run": {"graphs": 6}}, "compiled graphs of a block", "row 6"),
        ({"run": {"graphs": 0}}, "compiled graphs of a block", "row 6"),
        ({"run": {"sort_share": 0.05}}, "share of sorting kernels", "row 3"),
        ({"run": {"mfu": 0.3}}, "MFU of GPT-2 124M", "row 2"),
        ({"run": {"mfu": 0.3, "graphs": 6, "sort_share": 0.05}}, "MFU of GPT-2 124M", "row 6, row 3, and row 2"),
    ],
)
def test_a_bad_figure_of_the_first_visit_names_what_it_points_to(tmp_path, monkeypatch, changes, name, rows):
    verdict = judged(**changes)[name]
    assert not verdict.held
    assert rows in verdict.rows
    monkeypatch.setattr(record, "hardware", lambda emulated: {})
    part = Record(tmp_path / "first.json", "first", emulated=False)
    verdict.note(part)
    assert part.checks[0]["bar"].endswith(f"points to {verdict.rows} of tests/gpu/README.md")
    assert not part.checks[0]["held"]


def test_every_row_that_the_first_visit_names_is_in_the_table_of_the_readme():
    table = (PROJECT / "tests" / "gpu" / "README.md").read_text()
    assert {str(row) for row in (1, 2, 3, 4, 5, 6, 9, 11)} <= set(re.findall(r"^\| (\d+) \|", table, re.MULTILINE))


def test_the_speed_of_the_first_visit_is_that_of_the_steps_that_are_like_the_others():
    def step(number):
        seconds = 5.0 if number <= 22 else 0.02 if number == 31 else 0.1
        return {
            "step": number,
            "step_seconds": seconds,
            "tokens_per_second": 1.0,
            "mfu": 0.3 if number > 22 else 0.01,
            "time/data_seconds": 0.01,
        }

    found = first.speed_of([step(number) for number in range(1, 41)], first.ON_GPU)
    assert (found["step_seconds"], found["mfu"], found["fastest_after_pause"]) == (0.1, 0.3, pytest.approx(0.2))
    assert found["parts"] == {"time/data_seconds": 0.01}


def test_a_trace_tells_what_sorts_how_many_graphs_were_compiled_and_whether_the_head_made_passes(tmp_path):
    kernels = [("gemm", 90.0), ("void at_cuda_detail::cub::DeviceRadixSortOnesweepKernel", 10.0)]
    kernels.append(("void at::native::(anonymous namespace)::cunn_SoftMaxForward<4, float, float, float>", 0.0))
    graphs = [{"cat": "user_annotation", "name": f"## Call CompiledFxGraph {name} ##"} for name in ("f1", "f2", "f1")]
    events = [*graphs, *({"cat": "kernel", "name": name, "dur": dur} for name, dur in kernels)]
    (tmp_path / "rank-0.pt.trace.json.gz").write_bytes(gzip.compress(json.dumps({"traceEvents": events}).encode()))
    found = first.profile_of(tmp_path)
    assert (found["sort_share"], found["graphs"], list(found["kernels"])[0]) == (0.1, 2, "gemm")
    assert found["passes"] == [kernels[2][0]]


def test_waits_are_counted_by_their_place_and_other_warnings_are_told(tmp_path, monkeypatch):
    told, modes = [], []
    monkeypatch.setattr(syncs, "_tell_waits", modes.append)
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_: told.append(str(message)))
    monkeypatch.setattr(loop, "report", lambda run: [])
    with warnings.catch_warnings():
        syncs.watch(tmp_path / "waits.json")
        for number in range(1, syncs.LAST + 2):
            if number == syncs.FIRST:
                warnings.warn_explicit("called a synchronizing CUDA operation", UserWarning, "/a/optim/build.py", 72)
                warnings.warn_explicit("something else", UserWarning, "/a/b.py", 1)
            loop.report(SimpleNamespace(progress=SimpleNamespace(step=number)))
    assert json.loads((tmp_path / "waits.json").read_text()) == {"steps": 3, "waits": {"optim/build.py:72": 1}}
    assert modes == ["warn", "default"]
    assert told == ["something else"]


# The parts that other programs measure


BENCHMARK = """
import json, sys
assert sys.argv[1:4] == ["60", "--cuda", "--json"], sys.argv
open(sys.argv[4], "w").write(json.dumps({"checks": {"p50 seconds": 0.019, "p99 seconds": 0.31}, "medians": {"update": 0.06, "update_without_save": 0.01}}))
"""


@pytest.mark.parametrize(
    ("program", "held"), [(BENCHMARK, [True, False, True, True]), ("raise SystemExit('no room')", [False])]
)
def test_the_stall_of_a_save_is_that_of_its_benchmark_or_what_it_died_of(tmp_path, monkeypatch, capsys, program, held):
    (tmp_path / "stall.py").write_text(program)
    monkeypatch.setattr(stall, "BENCHMARK", tmp_path / "stall.py")
    part = Record(tmp_path / "stall.json", "stall", emulated=True)
    stall.measure(Scene(False, tmp_path / "work"), part)
    assert [check["held"] for check in part.checks] == held
    assert len(held) == 4 or "no room" in capsys.readouterr().out


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
