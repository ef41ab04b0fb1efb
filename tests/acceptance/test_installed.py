"""The package, built as a wheel and installed where there is no checkout: it works in any folder."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.commands import paragraph
from tests.launching import ONE_THREAD, PROJECT, write_recipe
from trainer.cli.guide import PAGES
from trainer.config import cluster as clusters
from trainer.config.load import recipe_names


@dataclass(frozen=True)
class Installed:
    """A fresh environment with the package, and a folder to stand in."""

    wheel: Path
    environment: Path
    folder: Path

    def trainer(self, *words: object) -> subprocess.CompletedProcess:
        return self.run("trainer", *words)

    def run(self, program: str, *words: object) -> subprocess.CompletedProcess:
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | ONE_THREAD
        return subprocess.run(
            [self.environment / "bin" / program, *map(str, words)],
            cwd=self.folder,
            env=variables,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Installed:
    """The wheel of this tree in an environment that has this one's packages besides."""
    home = tmp_path_factory.mktemp("installed")
    source = home / "source"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, source)
    for name in ("trainer", "accelerate_configs"):
        shutil.copytree(PROJECT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", home, source], check=True
    )
    (wheel,) = home.glob("*.whl")
    venv.create(home / "venv", with_pip=False, symlinks=True)
    python = home / "venv" / "bin" / "python"
    (packages,) = (home / "venv" / "lib").glob("python*/site-packages")
    (packages / "of_the_other.pth").write_text(sysconfig.get_path("purelib"))
    subprocess.run([*pip, "--python", python, "install", "--no-deps", "--no-index", "--no-compile", wheel], check=True)
    shutil.rmtree(source)
    (home / "anywhere else").mkdir()
    return Installed(wheel, home / "venv", home / "anywhere else")


def test_the_wheel_holds_what_the_package_reads_and_nothing_beside_it(installed):
    names = set(zipfile.ZipFile(installed.wheel).namelist())
    wanted = {str(path.relative_to(PROJECT)) for path in (PROJECT / "trainer").rglob("*.py")}
    wanted |= {f"trainer/accelerate_configs/{name}.yaml" for name in clusters.cluster_names()}
    wanted |= {f"trainer/guides/{name}.md" for name in PAGES}
    wanted |= {f"trainer/recipes/{name}.yaml" for name in recipe_names()}
    assert wanted <= names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {
        "trainer",
        "accelerate_trainer",
    }


def test_it_shows_the_guides_in_any_folder(installed):
    said = installed.trainer("guide", "run")
    assert said.returncode == 0
    assert said.stdout.startswith("# Run\n")


def test_it_knows_the_cluster_files_and_launches_from_any_folder(installed):
    """What a launch checks before it imports torch."""
    script = "from trainer import launcher; plan = launcher.check_launch(['cpu', 'shakespeare']); launcher.check_data(plan.config); print(plan.command)"
    said = installed.run("python", "-c", script)
    assert said.returncode == 0, said.stderr
    assert (installed.folder / ".data").is_dir()
    assert str(installed.environment) in said.stdout
    said = installed.trainer("launch", "cpux", "shakespeare")
    assert said.returncode == 2
    assert "'cpu'" in paragraph(said.stderr)


def test_another_projects_setup_cfg_in_the_folder_is_no_checkout_of_ours(installed):
    """What fp8 needs is told by the package itself, and nobody else's is installed for it."""
    (installed.folder / "setup.cfg").write_text(
        "[metadata]\nname = somebody-elses\n[options.extras_require]\nfp8 = somebody-elses-package\n"
    )
    script = "from trainer.tools.doctor import install; import json; print(json.dumps([install.requirement(), install.what_to_install()]))"
    requirement, words = json.loads(installed.run("python", "-c", script).stdout)
    assert requirement.startswith("transformer-engine[pytorch]")
    assert words == [requirement]
    (installed.folder / "setup.cfg").unlink()


@pytest.mark.long
def test_it_trains_three_steps_in_any_folder(installed):
    said = installed.trainer("cpu", "shakespeare", "--dry-run")
    assert said.returncode == 0, said.stderr
    recipe = write_recipe(
        installed.folder,
        max_steps=3,
        schedule={"warmup_steps": 0},
        runs_folder="runs",
        checkpoints_folder="checkpoints",
    )
    ended = installed.trainer("launch", "cpu", recipe)
    assert ended.returncode == 0, ended.stderr
    outcome = json.loads((installed.folder / "runs" / "tiny" / "outcome.json").read_text())
    assert (outcome["outcome"], outcome["step"]) == ("finished", 3)
    assert (installed.folder / "checkpoints" / "tiny" / "step-00000003").is_dir()
