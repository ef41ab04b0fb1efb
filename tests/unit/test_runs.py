"""Whole runs removed and renamed: both folders, never those of a live run, and what a kill divides the same command finishes."""

import json

import pytest

from tests.messages import refuses
from tests.small_checkpoints import CONFIG, commit
from trainer import files, locks, runs
from trainer.checkpoint.format.store import CheckpointStore, verify
from trainer.checkpoint.inspect.pin import set_pinned
from trainer.config.folders import find_checkpoints, folder_of_run
from trainer.config.load import load_resolved
from trainer.errors import TrainerError
from trainer.journal import Journal, read_events


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project whose one run, `run`, has two checkpoints and an outcome."""
    monkeypatch.setattr(files, "project_folder", lambda: tmp_path)
    store = CheckpointStore(tmp_path / "checkpoints" / "run")
    for step in (5, 10):
        commit(store, step)
    folder = tmp_path / "runs" / "run"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "outcome.json").write_text(
        json.dumps({"outcome": "finished", "step": 10, "exported": str(folder / "exported")})
    )
    Journal(folder).write("stop", cause="finished")
    return tmp_path


def content(project):
    return sorted(
        path.relative_to(project).as_posix() for path in project.rglob("*") if not path.name.startswith(".lock")
    )


def test_a_renamed_run_has_everything_under_its_new_name(project):
    runs.rename("run", "better")
    assert not (project / "runs/run").exists()
    assert not (project / "checkpoints/run").exists()
    folder = project / "runs/better"
    assert load_resolved(folder / "config.yaml").name == "better"
    assert find_checkpoints("better") == project / "checkpoints/better"
    assert json.loads((folder / "outcome.json").read_text())["exported"] == str(folder / "exported")
    assert [(e["event"], e.get("name"), e.get("was")) for e in read_events(folder)] == [
        ("stop", None, None),
        ("rename", "better", "run"),
    ]
    for entry in CheckpointStore(project / "checkpoints/better").entries():
        assert verify(entry.path) == []
        assert folder_of_run(entry.path) == folder


@pytest.mark.parametrize("number", range(1, 20))
def test_a_renaming_that_was_killed_anywhere_is_finished_by_the_same_command(project, monkeypatch, number):
    class Killed(BaseException):
        pass

    left = [number]

    def fails(real):
        def call(*arguments, **options):
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for name in ("move_folder", "write_atomic", "append_line"):
            patch.setattr(files, name, fails(getattr(files, name)))
        try:
            runs.rename("run", "better")
        except Killed:
            pass
    if left[0] <= 0:
        runs.rename("run", "better")
    assert load_resolved(project / "runs/better/config.yaml").name == "better"
    assert len(CheckpointStore(project / "checkpoints/better").entries()) == 2
    assert not (project / "runs/run").exists()
    assert not (project / "checkpoints/run").exists()


def test_a_renaming_that_was_killed_is_finished_also_when_starts_were_refused_since(project, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_atomic", lambda *words: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            runs.rename("run", "better")
    journal = Journal(project / "runs/run")
    journal.write("start")
    journal.write("stop", cause="exception")
    runs.rename("run", "better")
    assert load_resolved(project / "runs/better/config.yaml").name == "better"
    assert len(CheckpointStore(project / "checkpoints/better").entries()) == 2
    assert not (project / "runs/run").exists()


def test_nothing_is_replaced_and_a_name_has_to_be_one(project):
    (project / "checkpoints/other").mkdir()
    before = content(project)
    for name in ("other", "run", "../up", ".hidden", ""):
        with pytest.raises(TrainerError):
            runs.rename("run", name)
    assert content(project) == before


def test_a_run_is_removed_with_its_checkpoints_by_whoever_is_sure(project):
    before = content(project)
    with refuses(TrainerError, "--yes"):
        runs.remove("run", is_sure=False)
    set_pinned(project / "checkpoints/run", "5", pinned=True)
    with refuses(TrainerError, "pinned", "5"):
        runs.remove("run", is_sure=True)
    set_pinned(project / "checkpoints/run", "5", pinned=False)
    assert content(project) == before
    runs.remove("run", is_sure=True)
    assert content(project) == ["checkpoints", "runs"]


@pytest.mark.parametrize("place", ["runs", "checkpoints"])
def test_nothing_of_a_live_run_is_touched(project, monkeypatch, place):
    real, before = locks.take, content(project)
    monkeypatch.setattr("trainer.locks.take", lambda path: None if path.parent.parent.name == place else real(path))
    for work in (lambda: runs.remove("run", is_sure=True), lambda: runs.rename("run", "better")):
        with pytest.raises(TrainerError, match="another process"):
            work()
    assert content(project) == before


def test_a_folder_that_is_no_run_in_its_place_is_not_taken_for_one(project):
    for folder in (project / "checkpoints/run/step-00000005", project):
        (folder / "config.yaml").write_text(CONFIG)
        with pytest.raises(TrainerError, match="runs_folder"):
            runs.remove(str(folder), is_sure=True)
    assert (project / "checkpoints/run/step-00000005").is_dir()
