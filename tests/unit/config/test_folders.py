import shlex
import sys
from pathlib import Path

import pytest

from tests.messages import refuses
from trainer import files
from trainer.config import folders
from trainer.config.folders import (
    check_can_be_made,
    checkpoints_folder,
    find_checkpoints,
    find_run,
    resume_point,
    run_folder,
)
from trainer.config.load import dump, load
from trainer.errors import LaunchError, TrainerError


@pytest.fixture
def run(project):
    """A run called `mine` whose checkpoints are elsewhere than usual."""
    config = load("shakespeare", ["name=mine", "checkpoints_folder=disk/checkpoints"]).config
    run_folder(config).mkdir(parents=True)
    (run_folder(config) / "config.yaml").write_text(dump(config), encoding="utf-8")
    return config


def test_relative_folders_are_those_of_the_project(project):
    config = load("shakespeare", ["runs_folder=/absolute/runs"]).config
    assert checkpoints_folder(config) == project / "checkpoints" / "shakespeare"
    assert str(run_folder(config)) == "/absolute/runs/shakespeare"


def test_a_folder_to_continue_from_is_meant_from_the_project_and_a_word_is_not(project):
    for wanted, meant in (
        ("latest", "latest"),
        ("1500", "1500"),
        ("copy/step-00000005", str(project / "copy/step-00000005")),
    ):
        assert resume_point(load("shakespeare", [f"resume_from_checkpoint={wanted}"]).config) == meant


def test_a_folder_that_cannot_be_made_is_refused_and_nothing_is_made(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    check_can_be_made("runs_folder", tmp_path / "a" / "b")
    with refuses(LaunchError, tmp_path / "file", "runs_folder"):
        check_can_be_made("runs_folder", tmp_path / "file" / "runs" / "mine")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with refuses(LaunchError, tmp_path, "runs_folder"):
        check_can_be_made("runs_folder", tmp_path / "a" / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_run_is_found_by_name_and_by_folder(run, project):
    assert find_run("mine") == project / "runs" / "mine"
    assert find_run(str(project / "runs" / "mine")) == project / "runs" / "mine"


def test_an_unknown_run_is_answered_with_those_there_are(run):
    with refuses(TrainerError, "'yours'", "mine"):
        find_run("yours")


def test_where_nothing_was_trained_that_is_said(project):
    with refuses(TrainerError, project / "runs", "empty"):
        find_run("mine")


def test_checkpoints_are_found_where_the_run_put_them(run, project):
    assert find_checkpoints("mine") == project / "disk" / "checkpoints" / "mine"


def test_checkpoints_are_found_without_their_run_and_by_path(project):
    folder = project / "checkpoints" / "copied"
    folder.mkdir(parents=True)
    assert find_checkpoints("copied") == folder
    assert find_checkpoints(str(folder)) == folder


def test_checkpoints_of_an_unknown_run_are_answered_with_those_there_are(project):
    (project / "checkpoints" / "copied").mkdir(parents=True)
    with refuses(TrainerError, "'other'", "copied"):
        find_checkpoints("other")


def test_checkpoints_are_found_by_the_runs_folder_too(run, project, monkeypatch):
    monkeypatch.chdir(project)
    for words in ("runs/mine", str(project / "runs" / "mine")):
        assert find_checkpoints(words) == project / "disk" / "checkpoints" / "mine"


def test_the_folder_of_one_checkpoint_means_this_checkpoint_and_not_its_run(run, project):
    folder = checkpoints_folder(run) / "step-00000005"
    folder.mkdir(parents=True)
    for name in ("config.yaml", "manifest.json"):
        (folder / name).write_text(dump(run), encoding="utf-8")
    assert find_checkpoints(str(folder)) == folder


def test_a_command_is_printed_for_a_shell_and_for_where_one_stands(tmp_path, monkeypatch):
    checkout = files.checkout_folder()
    monkeypatch.chdir(checkout)
    words = ["generate", "/a b/runs/$mine", "--prompt", "it's"]
    assert shlex.split(folders.command_line(*words)) == ["./launch.sh", *words]
    monkeypatch.chdir(tmp_path)
    assert shlex.split(folders.command_line(*words)) == [str(checkout / "launch.sh"), *words]
    monkeypatch.setattr(files, "PACKAGE", tmp_path / "site-packages" / "trainer")
    for found, program in (("/bin/trainer", "trainer"), (None, str(Path(sys.prefix, "bin", "trainer")))):
        monkeypatch.setattr("shutil.which", lambda name, found=found: found)
        assert shlex.split(folders.command_line(*words)) == [program, *words]
