"""launch.sh and what is there before it: an environment of somebody else's, another Python, a link to it, a folder with modules in it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.test_mistakes import executable, launch_sh
from tests.commands import paragraph
from tests.launching import PROJECT, environment
from tests.messages import says

PIP = 'case "$*" in *"-m pip"*) echo "$*" >> "$0.calls"; exit 0 ;; esac\n'
REAL = f'exec "{sys.executable}" "$@"'


@pytest.fixture
def clone(tmp_path) -> Path:
    """A checkout whose environment is this Python with a pip that only notes its calls."""
    folder = tmp_path / "a clone"
    (folder / ".venv" / "bin").mkdir(parents=True)
    for name in ("launch.sh", "setup.cfg", "pyproject.toml"):
        shutil.copy(PROJECT / name, folder)
    (folder / "trainer").symlink_to(PROJECT / "trainer")
    executable(folder / ".venv" / "bin" / "python", PIP + REAL)
    return folder


def installations(clone: Path) -> int:
    calls = clone / ".venv" / "bin" / "python.calls"
    return len(calls.read_text().splitlines()) if calls.exists() else 0


def everything(folder: Path) -> dict[str, bytes | str]:
    found = sorted(folder.rglob("*"))
    return {
        str(path): os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else ""
        for path in found
    }


# What it did not make


@pytest.mark.parametrize("python", ["of somebody else", "dangling", "none"])
def test_an_environment_that_does_not_run_is_left_as_it_is(clone, python):
    """As the link to an interpreter in somebody else's home: this user may not run it."""
    there = clone / ".venv" / "bin" / "python"
    there.unlink()
    interpreter = clone.parent / "interpreter"
    if python == "of somebody else":
        interpreter.write_text("#!/bin/sh\n")  # and nobody may run it
    if python != "none":
        there.symlink_to(interpreter)
    (clone / ".venv" / "pyvenv.cfg").write_text("home = /home/somebody/bin\n")
    before = everything(clone)
    for words in ([], ["--setup"]):
        ended = launch_sh(clone, *words)
        assert ended.returncode == 2
        assert ended.stdout == ""
        assert str(clone / ".venv") in paragraph(ended.stderr)
    assert everything(clone) == before


@pytest.mark.parametrize("before", ["nothing", "an empty folder"])
def test_what_a_set_up_that_is_ended_has_made_goes_again_and_nothing_else(clone, tmp_path, before):
    shutil.rmtree(clone / ".venv")
    if before == "an empty folder":
        (clone / ".venv").mkdir()
    python = tmp_path / "python3"
    executable(
        python,
        f'case "$*" in *"-m venv"*) mkdir -p "$4/bin" && touch "$4/.hidden" && kill -TERM $PPID; exit 1 ;; esac\n{REAL}',
    )
    ended = launch_sh(clone, PYTHON=str(python))
    assert ended.returncode not in (0, 75)
    assert [path.name for path in clone.iterdir() if path.name == ".venv"] == (
        [".venv"] if before == "an empty folder" else []
    )
    assert not list(clone.glob(".venv/*"))


def test_two_set_ups_at_once_are_one_after_the_other(clone, tmp_path):
    shutil.rmtree(clone / ".venv")
    made = tmp_path / "made"
    python = tmp_path / "python3"
    body = f"#!/bin/sh\n{PIP}{REAL}\n"
    executable(
        python,
        f'case "$*" in *"-m venv"*) echo x >> "{made}"; mkdir -p "$4/bin"; sleep 0.5; '
        f'printf %s \'{body}\' > "$4/bin/python"; chmod +x "$4/bin/python"; exit 0 ;; esac\n{REAL}',
    )
    words = [shutil.which("bash"), str(clone / "launch.sh"), "--setup"]
    both = [subprocess.Popen(words, env=environment(PYTHON=str(python)), stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert made.read_text() == "x\n"
    assert installations(clone) == 1


# The Python that will run


def test_another_python_in_the_environment_is_installed_for_anew(clone):
    """As after an upgrade of the system's Python: what its predecessor installed is in a folder that the new one does not look at."""
    python = clone / ".venv" / "bin" / "python"
    assert launch_sh(clone, "--setup").returncode == launch_sh(clone, "--setup").returncode == 0
    assert installations(clone) == 1
    new = clone / "lib of the new one"
    look = f'case "$*" in *purelib*) [ -d "$(dirname "$0")/has" ] && there=with || there=without; echo "cpython-399 {new} $there the package"; exit 0 ;; esac\n'
    pip = PIP.replace("exit 0", 'mkdir "$(dirname "$0")/has"; exit 0')
    executable(python, pip + look + REAL)
    assert launch_sh(clone, "--setup").returncode == launch_sh(clone, "--setup").returncode == 0
    assert installations(clone) == 2


def test_a_python_without_pip_is_given_one(clone):
    no_pip = 'case "$*" in *"import pip"*) exit 1 ;; *"-m ensurepip"*) echo ensured >> "$0.calls"; exit 0 ;; esac\n'
    executable(clone / ".venv" / "bin" / "python", no_pip + PIP + REAL)
    assert launch_sh(clone, "--setup").returncode == 0
    first, second = (clone / ".venv" / "bin" / "python.calls").read_text().splitlines()
    assert first == "ensured"
    assert "install" in second


def test_a_set_up_ends_with_where_it_is_and_the_command_that_trains(clone):
    *_, last = launch_sh(clone, "--setup", "test").stderr.splitlines()
    says(last, clone / ".venv", "test", clone / "launch.sh")


def test_an_installation_that_the_python_does_not_find_is_told(clone):
    look = 'case "$*" in *purelib*) echo "cpython-399 /nowhere without the package"; exit 0 ;; esac\n'
    executable(clone / ".venv" / "bin" / "python", PIP + look + REAL)
    ended = launch_sh(clone, "--setup")
    assert ended.returncode == 2
    assert str(clone / ".venv") in paragraph(ended.stderr)


@pytest.mark.parametrize("extra", ["tset", "-h", "fp16", "test,fp9"])
def test_an_extra_that_there_is_not_is_refused_before_anything_is_installed(clone, extra):
    """pip says nothing but a warning, which is not shown, and installs the rest."""
    ended = launch_sh(clone, "--setup", extra)
    assert ended.returncode == (0 if extra == "-h" else 2)
    assert installations(clone) == 0
    assert not list(clone.glob(".venv/.installed*"))


def test_called_by_another_shell_it_goes_on_in_bash(clone, tmp_path):
    """`sh launch.sh` is a habit, and not every sh knows pipefail."""
    for words in (["-h"], ["settings"]):
        ended = subprocess.run(
            [shutil.which("sh"), str(clone / "launch.sh"), *words],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0
        assert ended.stdout
        assert "pipefail" not in ended.stderr


# Where one stands, and by which name it is called


@pytest.fixture
def foreign(tmp_path) -> Path:
    """A folder to stand in: another trainer, and modules that are called like those that are needed."""
    wrong = "raise SystemExit('the wrong code runs')"
    (tmp_path / "foreign" / "trainer").mkdir(parents=True)
    for name in ("trainer/__init__", "trainer/__main__", "yaml", "tokenize", "venv", "pip"):
        (tmp_path / "foreign" / f"{name}.py").write_text(wrong)
    return tmp_path / "foreign"


def test_the_folder_one_stands_in_pythonpath_cdpath_and_a_link_do_not_decide_which_code_runs(clone, foreign, tmp_path):
    (tmp_path / "link").symlink_to(clone / "launch.sh")
    (foreign / clone.name).mkdir()  # where CDPATH would lead to
    words = [shutil.which("bash"), "../link", "train", "shakespeare", "name=of_this_clone", "--show-config"]
    variables = environment(PYTHONPATH=str(foreign.parent / "nothing"), CDPATH=str(foreign))
    (foreign.parent / "nothing" / "trainer").mkdir(parents=True)
    (foreign.parent / "nothing" / "trainer" / "__init__.py").write_text("raise SystemExit('the wrong code runs')")
    before = everything(tmp_path)
    ended = subprocess.run(words, cwd=foreign, env=variables, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "of_this_clone" in ended.stdout
    assert installations(clone) == 1
    assert {path for path in set(everything(tmp_path)) - set(before) if "/a clone/" not in path} == set()
