"""Which code a start of ours runs: its own, whatever folder one stands in and whatever PYTHONPATH holds."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import trainer
from trainer import launcher, start
from trainer.__main__ import main

PACKAGE = Path(trainer.__file__).resolve().parent
WRONG = "raise SystemExit('the wrong code runs')"
TELL = "import json, sys, trainer, yaml, tokenize; print(json.dumps([module.__file__ for module in (trainer, yaml, tokenize)]))"


SPAWNS = """if __name__ == '__main__':
    import sys, trainer.__main__, trainer.cli
    def run():
        import multiprocessing
        child = multiprocessing.get_context('spawn').Process(target=print, args=('here',))
        child.start(), child.join()
        sys.exit(child.exitcode)
    trainer.cli.main = run
    sys.path.pop(0)  # the folder of the command, as that of an environment
    trainer.__main__._run()
"""


def copy_of_start(folder: Path, **modules: str) -> Path:
    """A package `trainer` in this folder with a start.py like ours and these modules; returns the start.py."""
    package = folder / "trainer"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "start.py").write_text((PACKAGE / "start.py").read_text())
    for name, code in modules.items():
        (package / f"{name}.py").write_text(code)
    return package / "start.py"


@pytest.fixture
def foreign(tmp_path) -> Path:
    """A folder to stand in: another trainer, and modules that are called like those that ours needs."""
    for name in ("trainer/__init__", "yaml", "tokenize", "typer"):
        path = tmp_path / "foreign" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(WRONG)
    return tmp_path / "foreign"


@pytest.fixture
def other(tmp_path) -> Path:
    """A folder for PYTHONPATH: another trainer, and a package of the person's own."""
    copy_of_start(tmp_path / "other", tell=WRONG)
    (tmp_path / "other" / "persons_own.py").touch()
    return tmp_path / "other"


def ran(command: list[str], cwd: Path, **environment: str) -> str:
    ended = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr + ended.stdout
    return ended.stdout


def test_a_process_that_the_command_spawns_imports_nothing_from_the_current_folder(tmp_path, foreign):
    """The command `trainer` of an environment has no -P that it would pass on."""
    for name in ("socket", "tempfile", "random"):
        (foreign / f"{name}.py").write_text(WRONG)
    (tmp_path / "command.py").write_text(SPAWNS)
    assert ran([sys.executable, str(tmp_path / "command.py")], foreign) == "here\n"


def test_a_start_runs_its_own_package_and_keeps_the_packages_that_a_person_brings(tmp_path, foreign, other):
    own = copy_of_start(tmp_path / "own", tell=f"import persons_own; {TELL}")
    words = ["trainer.tell", "a word"]
    for command, environment in (([sys.executable, "-P"], {}), ([sys.executable], start.SAFE_PATH)):
        files = json.loads(ran([*command, str(own), *words], foreign, PYTHONPATH=str(other), **environment))
        assert files[0] == str(own.parent / "__init__.py")
        assert not any(str(foreign) in file for file in files)
    assert start.command("trainer.tell", "a word") == [sys.executable, "-P", str(PACKAGE / "start.py"), *words]


def test_what_multiprocessing_spawns_from_it_is_of_the_same_package(tmp_path, foreign, other):
    spawn = (
        "import multiprocessing, trainer.told\n"
        "with multiprocessing.get_context('spawn').Pool(1) as pool: print(pool.apply(trainer.told.where))\n"
    )
    own = copy_of_start(tmp_path / "own", tell=spawn, told="import trainer\ndef where(): return trainer.__file__")
    said = ran([sys.executable, "-P", str(own), "trainer.tell"], foreign, PYTHONPATH=str(other))
    assert said.strip() == str(own.parent / "__init__.py")


@pytest.mark.parametrize("how", ["as a wheel", "as editable", "not at all", "as an older one"])
def test_the_command_of_an_environment_runs_what_is_installed_there(tmp_path, monkeypatch, how):
    site_packages, checkout = tmp_path / "site packages", tmp_path / "the checkout"
    facts = site_packages / "accelerate_trainer-0.1.0.dist-info"
    if how != "not at all":
        facts.mkdir(parents=True)
        (facts / "METADATA").write_text("Name: accelerate-trainer\nVersion: 0.1.0\n")
    if how == "as editable":
        (facts / "direct_url.json").write_text(json.dumps({"url": checkout.as_uri(), "dir_info": {"editable": True}}))
    root = checkout if how == "as editable" else site_packages
    if how != "as an older one":
        copy_of_start(root)
    monkeypatch.setattr("site.getsitepackages", lambda: [str(site_packages)])
    monkeypatch.setattr("site.ENABLE_USER_SITE", False)
    monkeypatch.setattr(sys, "argv", ["trainer", "report", "mine"])
    became = []

    def become(program, words):
        became.append(words)
        raise SystemExit(0)

    monkeypatch.setattr(os, "execv", become)
    monkeypatch.setattr("trainer.cli.main", lambda: became.append("this one"))
    if how == "not at all":
        main()
        assert became == ["this one"]
        assert start.installed_package() is None
        return
    with pytest.raises(SystemExit) as ended:
        main()
    assert start.installed_package() == root / "trainer"
    if how == "as an older one":
        assert ended.value.code == 2
        assert became == []
    else:
        assert became == [[sys.executable, "-P", str(root / "trainer" / "start.py"), "trainer", "report", "mine"]]


def test_under_oo_which_has_no_docstrings_the_command_starts_again_with_o(monkeypatch):
    """transformers cannot be imported without its docstrings."""
    monkeypatch.setattr(sys, "flags", SimpleNamespace(optimize=2))
    monkeypatch.setattr(sys, "argv", ["trainer", "report", "mine"])
    monkeypatch.setattr("trainer.cli.main", lambda: pytest.fail("it went on without docstrings"))
    became = []

    def become(program, words, environment):
        became.append((words, environment["PYTHONOPTIMIZE"]))
        raise SystemExit(0)

    monkeypatch.setattr(os, "execve", become)
    with pytest.raises(SystemExit):
        main()
    assert became == [(start.command("trainer", "report", "mine"), "1")]


def test_every_start_of_ours_goes_through_it_or_is_told_to_look_nowhere_else():
    """`-m` looks a name up in the current folder first, and so does `-c` for whatever it imports."""
    loose = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            words = [getattr(word, "value", None) for word in getattr(node, "elts", [])]
            if {"-m", "-c"} & {word for word in words if isinstance(word, str)} and not {"-P", "-I"} & set(
                map(str, words)
            ):
                loose.append(f"{path}:{node.lineno}")
    assert loose == []


def test_the_ranks_of_a_launch_are_started_the_same_way(cluster):
    plan = launcher.check_launch([cluster(), "shakespeare"])
    assert plan.command[:4] == start.command("trainer.launcher_child")
    assert start.SCRIPT in plan.command[4:]
    assert plan.environment["PYTHONSAFEPATH"] == "1"
    assert plan.environment.get("PYTHONPATH") == os.environ.get("PYTHONPATH")
