"""`trainer doctor` as it is typed: it answers as the run does, and outlives what is broken. And launch.sh, which installs what fp8 lacks."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests import emulation
from tests.acceptance.test_mistakes import launch_sh
from tests.commands import paragraph, trainer
from tests.launching import PROJECT, outcome, write_cluster, write_recipe
from tests.messages import line_of, names, says
from trainer import launcher
from trainer.tools.doctor.ask import ask
from trainer.tools.doctor.diagnosis import foresee
from trainer.tools.doctor.examine import BACKEND, ROWS

WHOLE = {"bf16_first_blocks": 0, "bf16_last_blocks": 0}

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="what a machine without a GPU is told")


def on_path(monkeypatch, folder) -> None:
    """Lets the doctor's processes find TransformerEngine in this folder."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(PROJECT), str(folder))))


def doctor(*words) -> dict:
    """What `trainer doctor ... --json` says."""
    said = trainer("doctor", *map(str, words), "--json")
    assert said.err == ""
    content = json.loads(said.out)
    assert content["exit_code"] == said.code
    return content


# This machine


def test_without_words_it_tells_what_there_is_and_exits_with_0():
    said = trainer("doctor")
    assert said.code == 0
    assert said.out.isascii()
    assert said.err == ""
    first, second, third, _, head, *rows = said.out.splitlines()
    assert first.startswith("Python 3.")
    assert f"torch {torch.__version__}" in first
    assert head.split() == ["precision", "here", "because"]
    assert len(rows) >= len(ROWS)
    assert rows[0].split()[-1] == "yes"
    assert rows[1].split()[1] == "yes"
    assert "fp32's speed" in rows[1]
    says(rows[2], "no fp16")
    assert all(names(row, "CUDA device") for row in rows[3:8])
    assert said.out.splitlines()[-1] == "next: ./launch.sh cpu RECIPE"
    content = doctor()
    assert [row["asked"] for row in content["precisions"]] == list(ROWS)
    assert content["fits"] == "cpu"
    assert content["launch"] is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["cpu", "nonsense"], "unknown recipe 'nonsense'"),
        (["1gpu_fp7"], "'1gpu_fp7' is neither a cluster file nor a recipe; did you mean '1gpu_fp8'?"),
        (["cpu", "shakespeare", "precision.recipe=blok"], "precision.recipe (override) is 'blok'"),
    ],
)
def test_a_mistake_in_its_words_is_the_usual_paragraph(words, said):
    ended = trainer("doctor", *words)
    assert ended.code == 2
    assert ended.out == ""
    assert said in paragraph(ended.err)


# The same as the run


@pytest.mark.parametrize(
    ("stand_in", "wanted"),
    [
        pytest.param(False, {}, marks=pytest.mark.long),
        (True, WHOLE),
        pytest.param(True, {**WHOLE, "recipe": "block", "required": True}, marks=pytest.mark.long),
    ],
    ids=["no device", "emulation", "widths"],
)
def test_it_says_what_the_run_says(tmp_path, monkeypatch, stand_in, wanted):
    recipe = write_recipe(tmp_path, max_steps=1, schedule={"warmup_steps": 0}, precision=wanted)
    cluster = write_cluster(tmp_path, 1, mixed_precision="fp8")
    if stand_in:
        on_path(monkeypatch, emulation.STAND_IN)
    asked = launcher.read_words([str(cluster), str(recipe)])
    launch = foresee(asked.cluster, asked.recipe, asked.overrides, asked.loaded.config, asked.environment)
    text = emulation.train(recipe, before=emulation.install if stand_in else None, exit_code=2 if launch.refused else 0)
    assert (launch.refused or launch.decision.sentence) in text
    assert bool(launch.refused) == ("required" in wanted)
    assert launch.is_as_asked == (not launch.refused and launch.decision.mode == "fp8")


def test_an_option_that_the_run_would_refuse_ends_it_with_the_same_words(tmp_path):
    recipe = write_recipe(tmp_path, precision={"recipe": "delayed", "options": {"interval": 2}})
    ended = trainer("doctor", str(write_cluster(tmp_path, 1, mixed_precision="fp8")), str(recipe))
    assert ended.code == 2
    says(paragraph(ended.err), "precision.options.interval", "precision.recipe", "'delayed'")


def test_the_stand_in_is_never_called_fp8(monkeypatch):
    on_path(monkeypatch, emulation.STAND_IN)
    said = trainer("doctor").out
    rows = {line[:14].strip(): line for line in said.splitlines() if line.startswith("  fp8")}
    assert len(rows) == 5
    assert all(line.split()[2] == "emulated" and "this is NOT fp8" in line for line in rows.values())


# What is broken


def test_a_broken_transformer_engine_is_told_and_takes_nothing_down(tmp_path, monkeypatch):
    (tmp_path / "transformer_engine").mkdir()
    (tmp_path / "transformer_engine" / "__init__.py").write_text(
        "raise AssertionError('Could not find TE core package')"
    )
    on_path(monkeypatch, tmp_path)
    content = doctor()
    assert content["exit_code"] == 0
    assert content["transformer_engine"]["problem"] == "AssertionError: Could not find TE core package"
    assert {row["asked"]: row["possible"] for row in content["precisions"]}["bf16"] == "yes"


def test_a_transformer_engine_that_takes_its_process_down_is_told(tmp_path, monkeypatch):
    (tmp_path / "transformer_engine").mkdir()
    (tmp_path / "transformer_engine" / "__init__.py").write_text(
        "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    )
    on_path(monkeypatch, tmp_path)
    answers = ask((BACKEND, "bf16"), None)
    says(answers[BACKEND]["problem"], "SIGSEGV")
    assert answers["bf16"]["decision"]["mode"] == "bf16"


def test_a_torch_that_does_not_load_is_told(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file')")
    on_path(monkeypatch, tmp_path)
    said = trainer("doctor")
    assert said.code == 0
    line_of(said.out, "torch", "OSError: libcudart.so.13")


# launch.sh

PYTHON = """\
#!/usr/bin/env bash
# The Python of this environment, with an H100 to it and a pip that fails.
here="$(dirname "$0")"
if [ "$2 $3" = "-m pip" ]; then
    echo "$*" >> "$here/pip.calls"
    case "$*" in *'[fp8]') echo "a.h:3:10: fatal error: Python.h: No such file or directory"; exit 1 ;; esac
    exit 0
fi
if [ "$3" = trainer.tools.doctor.examine ]; then
    case "$(cat)" in *'"launch"'*) exit 1 ;; *'"backend"'*) answer='["backend", {"name": null}]' ;; *) answer='["torch", {"version": "2.11.0", "cuda": "13.0"}]' ;; esac
    echo "$answer" > "/proc/self/fd/$4"
    exit 0
fi
exec -a "$0" "REAL" "$@"
"""

NVML = """
import types
class NVMLError(Exception): pass
class NVMLError_LibraryNotFound(NVMLError): pass
def nvmlInit(): pass
def nvmlShutdown(): pass
def nvmlDeviceGetCount(): return 1
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlSystemGetDriverVersion(): return "580.95.05"
def nvmlDeviceGetName(handle): return "NVIDIA H100"
def nvmlDeviceGetMemoryInfo(handle): return types.SimpleNamespace(total=85520809984)
def nvmlDeviceGetCudaComputeCapability(handle): return (9, 0)
"""


@pytest.fixture
def checkout(tmp_path) -> Path:
    """This checkout in another place, with an environment of its own: this Python's packages, an H100 by the driver, and a pip that fails."""
    folder = tmp_path / "checkout"
    (folder / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(PROJECT / "launch.sh", folder)  # which goes by the place of the file itself
    for name in ("setup.cfg", "pyproject.toml", "trainer", "accelerate_configs"):
        (folder / name).symlink_to(PROJECT / name)
    home, lib = Path(sys.base_prefix, "bin"), Path(torch.__file__).parents[2]
    (folder / ".venv" / "lib").mkdir()
    (folder / ".venv" / "lib" / lib.name).symlink_to(lib)
    (folder / ".venv" / "pyvenv.cfg").write_text(f"home = {home}\n")
    python = folder / ".venv" / "bin" / "python"
    python.write_text(PYTHON.replace("REAL", str(Path(sys.executable).resolve())))
    python.chmod(0o755)
    assert launch_sh(folder, "--setup").returncode == 0
    (folder / ".venv" / "bin" / "pip.calls").unlink()
    (tmp_path / "nvml").mkdir()
    (tmp_path / "nvml" / "pynvml.py").write_text(NVML)
    return folder


def calls(checkout: Path) -> list[str]:
    path = checkout / ".venv" / "bin" / "pip.calls"
    return path.read_text().splitlines() if path.exists() else []


def typed(checkout: Path, *words: str) -> subprocess.CompletedProcess:
    """launch.sh with these words; the driver's library is the one that has an H100."""
    path = os.pathsep.join((str(checkout.parent / "nvml"), str(PROJECT)))
    return launch_sh(checkout, *words, PYTHONPATH=path)


def test_launch_sh_asks_the_doctor(checkout):
    ended = typed(checkout, "doctor", "nonsense", "words", "more")
    assert ended.returncode == 2
    says(paragraph(ended.stderr), "nonsense words more")


def test_a_set_up_with_fp8_that_fails_says_why_and_where(checkout):
    for number in (1, 2):
        ended = typed(checkout, "--setup", "fp8")
        assert ended.returncode == 2
        assert ended.stdout == ""
        assert "installing TransformerEngine (transformer-engine[pytorch]" in ended.stderr
        told = paragraph(ended.stderr)
        assert "fatal error: Python.h" in told
        assert str(checkout / ".venv" / "fp8-install.log") in told
        says(told, "start again")
        assert sum("--no-build-isolation" in call for call in calls(checkout)) == number
    assert "Python.h" in (checkout / ".venv" / "fp8-install.log").read_text()


@pytest.mark.long
def test_a_launch_whose_installation_fails_trains_in_bf16(checkout, tmp_path):
    """ACCELERATE_USE_CPU lets the ranks compute without the GPU that this machine only seems to have."""
    recipe = write_recipe(tmp_path, max_steps=2, schedule={"warmup_steps": 0})
    content = yaml.safe_load((PROJECT / "accelerate_configs" / "1gpu_fp8.yaml").read_text())
    content.pop("dynamo_config")
    (tmp_path / "1gpu.yaml").write_text(yaml.safe_dump(content))
    ended = typed(checkout, str(tmp_path / "1gpu.yaml"), str(recipe))
    assert ended.returncode == 0, ended.stderr
    assert outcome(recipe)["outcome"] == "finished"
    before, after = ended.stderr.split("TransformerEngine could not be installed")
    assert "installing TransformerEngine" in before
    assert "precision:" not in before
    assert "fatal error: Python.h" in after
    says(after, "bf16")
    assert "launch.sh --setup fp8 tries again" in after
    line_of(ended.stderr, "precision: bf16", "fp8", "current scaling, hybrid", "no CUDA device")
    assert len(calls(checkout)) == 2
