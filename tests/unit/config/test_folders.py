import pytest

from trainer.config.folders import checkpoints_folder, find_checkpoints, find_run, run_folder
from trainer.config.load import dump, load
from trainer.errors import TrainerError


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


def test_a_run_is_found_by_name_and_by_folder(run, project):
    assert find_run("mine") == project / "runs" / "mine"
    assert find_run(str(project / "runs" / "mine")) == project / "runs" / "mine"


def test_an_unknown_run_is_answered_with_those_there_are(run):
    with pytest.raises(TrainerError, match="there is no run 'yours'; known are: mine"):
        find_run("yours")


def test_where_nothing_was_trained_that_is_said(project):
    with pytest.raises(TrainerError, match="nothing was trained here yet"):
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
    with pytest.raises(TrainerError, match="no checkpoints of 'other'; known are: copied"):
        find_checkpoints("other")
