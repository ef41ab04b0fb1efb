"""The installation of TransformerEngine, with pip and what is found out played."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.launching import PROJECT
from tests.messages import names, says
from tests.unit.tools.doctor.machines import A100, H100, machine
from trainer import locks
from trainer.config.cluster import read_cluster
from trainer.config.schema import PrecisionConfig
from trainer.precision.decide import setup_command
from trainer.tools.doctor import install as room
from trainer.tools.doctor.examine import BACKEND, TORCH

NOT_THERE, WORKS, BROKEN = (
    {"name": None},
    {"name": "TransformerEngine 2.20.2"},
    {"problem": "OSError: undefined symbol"},
)


class Environment:
    """A Python environment in a folder: what is in it, what pip does to it, what was said."""

    def __init__(self, folder):
        self.folder, self.there, self.after, self.cuda = folder, NOT_THERE, WORKS, "13.0"
        self.output, self.code, self.commands, self.variables, self.said = "Successfully installed\n", 0, [], {}, []

    def run(self, command, environment, out):
        self.commands.append(command)
        self.variables = environment
        print(self.output, end="", file=out, flush=True)
        if "-e" in command:
            self.there = self.after if not self.code else self.there
            return self.code
        return 0

    def answer(self, questions, asked):
        known = {BACKEND: self.there, TORCH: {"version": "2.11.0", "cuda": self.cuda}}
        return {question: known[question] for question in questions}

    def launch(self, cluster="1gpu_fp8", **wanted):
        """What a launch says before it starts."""
        self.said.clear()
        room.install_for(read_cluster(cluster), PrecisionConfig(**wanted), self.said.append)
        return " ".join(self.said)

    @property
    def log(self):
        return self.folder / "fp8-install.log"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An environment without TransformerEngine on a machine with one H100."""
    made = Environment(tmp_path)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(room, "is_installed", lambda: made.there is not NOT_THERE)
    monkeypatch.setattr(room, "ask", made.answer)
    monkeypatch.setattr(room, "read_machine", lambda: machine(H100))
    monkeypatch.setattr(room, "_run", made.run)
    return made


# A launch


def test_folders_that_pip_left_behind_are_no_installation(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "transformer_engine", raising=False)
    (tmp_path / "transformer_engine" / "common").mkdir(parents=True)
    assert not room.is_installed()
    (tmp_path / "transformer_engine" / "__init__.py").touch()
    assert room.is_installed()


def test_a_launch_with_fp8_installs_what_is_missing(here):
    said = here.launch()
    assert "installing TransformerEngine (transformer-engine[pytorch]" in said
    says(said, "an hour")
    assert str(here.log) in said
    says(said, "TransformerEngine 2.20.2")
    tools, extra = here.commands
    assert tools[:5] == extra[:5] == [sys.executable, "-P", "-m", "pip", "install"]
    assert {"wheel", "packaging", "ninja"} <= set(tools)
    assert "--no-build-isolation" in extra
    assert "--no-cache-dir" in extra
    assert extra[-2:] == ["-e", f"{PROJECT}[fp8]"]
    assert here.log.read_text().count("Successfully installed") == 2
    here.commands.clear()
    assert here.launch() == ""
    assert not here.commands


@pytest.mark.parametrize("cluster", ["1gpu_bf16", "cpu"])
def test_a_launch_that_asks_for_something_else_installs_nothing(here, cluster):
    assert here.launch(cluster) == ""
    assert not here.commands


@pytest.mark.parametrize(
    "lacks",
    [
        {"there": BROKEN},
        {"cuda": None},
        {"machine": machine()},
        {"machine": machine(H100, num_visible=0)},
        {"machine": machine(A100, A100)},
        {"recipe": "mxfp8"},
        {"recipe": "block", "cuda": "12.8"},
    ],
    ids=str,
)
def test_where_it_would_bring_no_fp8_nothing_is_installed(here, monkeypatch, lacks):
    monkeypatch.setattr(room, "read_machine", lambda: lacks.get("machine", machine(H100)))
    here.there, here.cuda = lacks.get("there", NOT_THERE), lacks.get("cuda", "13.0")
    assert here.launch(recipe=lacks.get("recipe", "auto")) == ""
    assert not here.commands


def test_a_cluster_file_for_cpus_installs_nothing(here, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("distributed_type: MULTI_GPU\nnum_processes: 1\nmixed_precision: fp8\nuse_cpu: true\n")
    assert here.launch(str(path)) == ""
    assert not here.commands


@pytest.mark.parametrize("requirement", [None, "transformer-engine[pytorch]<3,>=2.20"])
def test_without_a_checkout_the_package_itself_says_what_is_required(here, tmp_path, monkeypatch, requirement):
    packages = tmp_path / "site-packages"
    monkeypatch.setattr("trainer.files.PACKAGE", packages / "trainer")
    if requirement:
        (packages / "accelerate_trainer-0.1.0.dist-info").mkdir(parents=True)
        noted = f'Requires-Dist: pytest; extra == "test"\nRequires-Dist: {requirement}; extra == "fp8"\n'
        (packages / "accelerate_trainer-0.1.0.dist-info" / "METADATA").write_text(
            f"Name: accelerate-trainer\nVersion: 0.1.0\n{noted}"
        )
    path = tmp_path / "mine.yaml"
    path.write_text("distributed_type: MULTI_GPU\nnum_processes: 1\nmixed_precision: fp8\n")
    said = here.launch(str(path))
    assert [command[-1] for command in here.commands][1:] == ([requirement] if requirement else [])
    assert (requirement or "") in said


# Failures


def test_a_failure_is_told_once_and_not_tried_again_at_every_start(here):
    here.code, here.output = (
        1,
        "  common.h:3: fatal error: Python.h: No such file or directory\nERROR: Could not build wheels\n",
    )
    said = here.launch()
    says(said, "TransformerEngine", "Python.h: No such file or directory", here.log, "bf16")
    says(said, setup_command())
    here.commands.clear()
    said = here.launch()
    says(said, "TransformerEngine")
    assert "Python.h" in said
    assert setup_command() in said
    assert not here.commands


def test_with_another_torch_it_is_tried_again(here, monkeypatch):
    here.code = 1
    here.launch()
    here.commands.clear()
    monkeypatch.setattr(room, "version", lambda name: "9.9")
    assert "installing TransformerEngine" in here.launch()
    assert here.commands


def test_a_note_of_a_failure_that_is_damaged_is_none(here):
    (here.folder / "fp8-install.failed").write_text('["for"]')
    says(here.launch(), "TransformerEngine 2.20.2")


def test_where_fp8_is_required_the_failure_is_a_refusal(here):
    here.code = 1
    says(here.launch(required=True), "refused", "precision.required")


def test_what_is_installed_and_does_not_load_is_a_failure_in_its_words(here):
    here.after = BROKEN
    said = here.launch()
    says(said, "OSError: undefined symbol", "bf16")


def test_an_environment_that_cannot_be_written_is_told(here, monkeypatch):
    def refuses(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(locks, "take", refuses)
    says(here.launch(), here.folder, "PermissionError")
    assert not here.commands


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            "a.cpp:1: error: no\nx.cpp:2: fatal error: nv/target: No such file\nERROR: Could not build wheels",
            "a.cpp:1: error: no",
        ),
        (
            "ERROR: Could not find a version\nERROR: No matching distribution found for x\nbye",
            "ERROR: No matching distribution found for x",
        ),
        (
            "  /bin/sh: 1: g++: not found\nRuntimeError: Error compiling\nERROR: Could not build wheels",
            "/bin/sh: 1: g++: not found",
        ),
        ("collecting\nKilled\n\n", "Killed"),
        ("", None),
    ],
)
def test_the_words_of_a_failure_are_those_that_say_why(said, words):
    assert room.last_words(said) == words


# By hand


def test_typed_by_hand_it_is_tried_again_and_a_success_takes_the_note_away(here):
    here.code = 1
    here.launch()
    here.code = 0
    assert room.install(here.said.append, again=True) is None
    assert not (here.folder / "fp8-install.failed").exists()
    says(here.said[-1], "TransformerEngine 2.20.2", "installed in")
    here.commands.clear()
    assert room.install(here.said.append, again=True) is None
    says(here.said[-1], "TransformerEngine 2.20.2")
    assert not here.commands


def test_what_is_broken_goes_before_it_comes_again(here):
    here.there = BROKEN
    assert room.install(here.said.append, again=True) is None
    assert here.commands[0][3:6] == ["pip", "uninstall", "--yes"]
    assert "transformer-engine-torch" in here.commands[0]
    assert here.there is WORKS


def test_a_torch_without_cuda_is_told_instead_of_a_build_that_cannot_be(here):
    here.cuda = None
    says(room.install(here.said.append, again=True), "CUDA")
    assert not here.commands


def test_of_two_that_install_at_once_the_second_waits_and_finds_it_done(here):
    with locks.take(here.folder / "fp8-install.lock"):
        waiting = threading.Thread(target=lambda: room.install(here.said.append, again=False))
        waiting.start()
        ends = time.monotonic() + 20
        while not here.said and time.monotonic() < ends:
            time.sleep(0.01)
        says(here.said[0], "another process", "TransformerEngine")
        here.there = WORKS
    waiting.join(20)
    assert [names(said, "TransformerEngine 2.20.2") for said in here.said[1:]] == [True]
    assert not here.commands


def test_of_two_that_install_at_once_the_second_takes_the_firsts_failure_for_its_own(here):
    here.code = 1
    here.launch()
    here.commands.clear()
    says(room.install(here.said.append, again=False), "TransformerEngine", here.log)
    assert not here.commands


# The build


def test_the_headers_are_those_of_the_cuda_that_torch_brought(monkeypatch):
    monkeypatch.setattr(
        room, "version", {"nvidia-cuda-runtime": "13.0.96", "nvidia-cuda-runtime-cu12": "12.8.90"}.__getitem__
    )
    assert room.header_packages("13.0") == ["nvidia-cuda-crt==13.0.*", "nvidia-cuda-cccl==13.0.*"]
    assert room.header_packages("12.8") == ["nvidia-cuda-nvcc-cu12==12.8.*", "nvidia-cuda-cccl-cu12==12.8.*"]


def test_where_cuda_came_from_a_toolkit_its_own_headers_are_taken(monkeypatch):
    def version(name):
        raise room.PackageNotFoundError(name)

    monkeypatch.setattr(room, "version", version)
    assert room.header_packages("13.0") == []
    assert room.header_packages("14.0") == []
    assert "NVTE_BUILD_USE_NVIDIA_WHEELS" not in room.build_variables(from_packages=False)


def test_a_person_may_tell_the_build_otherwise(here, monkeypatch):
    monkeypatch.setenv("MAX_JOBS", "77")
    here.launch()
    assert here.variables["MAX_JOBS"] == "77"
    assert here.variables["NVTE_WITH_NCCL_EP"] == "0"
    assert int(room.build_variables(from_packages=True)["MAX_JOBS"]) >= 1


def test_nothing_that_was_started_stays_when_the_installation_is_stopped(tmp_path):
    script = f"""
import signal, sys
from trainer.tools.doctor.install import _run
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
with open({str(tmp_path / "log")!r}, "w") as out:
    _run(["sh", "-c", "echo $$ > {tmp_path}/pid; sleep 100 & wait"], dict(__import__("os").environ), out)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=PROJECT, env={**os.environ, "PYTHONPATH": str(PROJECT)}
    )
    ends = time.monotonic() + 30
    while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip()):
        assert process.poll() is None
        assert time.monotonic() < ends
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 75
    group = int((tmp_path / "pid").read_text())
    while _alive(group):
        assert time.monotonic() < ends
        time.sleep(0.02)


def test_a_stop_that_comes_while_the_installation_is_being_started_leaves_nothing_either(tmp_path):
    script = f"""
import os, signal, sys
from trainer.tools.doctor import install
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
install.end_with_parent = lambda: os.kill(os.getppid(), signal.SIGTERM)
with open({str(tmp_path / "log")!r}, "w") as out:
    install._run(["sh", "-c", "echo $$ > {tmp_path}/pid; sleep 100 & wait"], dict(os.environ), out)
"""
    process = subprocess.run(
        [sys.executable, "-c", script], cwd=PROJECT, env={**os.environ, "PYTHONPATH": str(PROJECT)}, timeout=60
    )
    assert process.returncode == 75
    ends = time.monotonic() + 10
    while (pid := tmp_path / "pid").exists() and pid.read_text().strip() and _alive(int(pid.read_text())):
        assert time.monotonic() < ends
        time.sleep(0.02)


def _alive(group: int) -> bool:
    """Whether any process of this group runs."""
    stats = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            stats.append(path.read_text().rpartition(")")[2].split())
        except OSError:
            continue
    return any(int(fields[2]) == group and fields[0] not in "ZX" for fields in stats)


def test_a_note_of_a_failure_says_what_it_was_of(here):
    here.code = 1
    here.launch()
    note = json.loads((here.folder / "fp8-install.failed").read_text())
    assert "transformer-engine[pytorch]" in note["for"]
    assert "torch" in note["for"]
    assert note["why"] == '"Successfully installed"'
