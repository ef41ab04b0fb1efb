"""`trainer checkpoints fetch`, from every kind of place."""

import fsspec
import pytest

from tests.commands import paragraph, trainer
from tests.small_checkpoints import commit, flip
from trainer import locks
from trainer.checkpoint.format.store import CheckpointStore, verify
from trainer.checkpoint.mirror.transfer import copy_checkpoint
from trainer.checkpoint.resume.diverged import set_diverged_aside
from trainer.config.load import dump, load
from trainer.journal import Journal

MEMORY = fsspec.filesystem("memory")


@pytest.fixture(params=["path", "file", "memory"])
def place(request, tmp_path, store):
    """A second place of each kind that has steps 5 (the best) and 10 of a run called `mine`."""
    where = {"path": "", "file": "file://", "memory": "memory:/"}[request.param] + str(tmp_path / "second" / "mine")
    for step, val_loss in ((5, 1.5), (10, 1.75)):
        copy_checkpoint(commit(store, step, val_loss=val_loss), where, keep=3)
    yield where
    MEMORY.store.clear()
    MEMORY.pseudo_dirs[:] = [""]


def steps(folder):
    return [entry.step for entry in CheckpointStore(folder).entries()]


def refused(*words):
    typed = trainer("checkpoints", "fetch", *map(str, words))
    assert typed.code == 2 and not typed.out
    return paragraph(typed.err)


def test_without_a_step_what_is_there_is_listed_newest_first(place, project):
    typed = trainer("checkpoints", "fetch", place)
    lines = typed.out.splitlines()
    assert typed.code == 0 and lines[0].startswith(f"{place}  (2, ") and lines[1].split()[0] == "step"
    assert [line.split()[0] for line in lines[2:]] == ["10", "5"] and "1.5000" in lines[3]
    assert not (project / "checkpoints" / "mine").exists()


@pytest.mark.parametrize(("wanted", "step"), [("latest", 10), ("best", 5), ("5", 5), ("00000010", 10)])
def test_a_checkpoint_comes_back_to_the_run_of_that_name(place, project, store, wanted, step):
    typed = trainer("checkpoints", "fetch", f"{place}/", wanted)
    home = CheckpointStore(project / "checkpoints" / "mine")
    assert (
        typed.code == 0
        and typed.out.startswith(f"{home.path(step)}: ")
        and "every byte read back and sound" in typed.out
    )
    assert steps(home.folder) == [step] and verify(home.path(step)) == []
    assert (home.path(step) / "model.safetensors").read_bytes() == (store.path(step) / "model.safetensors").read_bytes()
    assert sorted(path.name for path in home.folder.iterdir()) == [".lock", home.path(step).name]


def test_it_may_go_to_another_run_or_any_folder(place, project):
    assert trainer("checkpoints", "fetch", place, "5", "--to", "other").code == 0
    assert trainer("checkpoints", "fetch", place, "5", "--to", str(project / "any" / "folder")).code == 0
    assert steps(project / "checkpoints" / "other") == steps(project / "any" / "folder") == [5]


def trained(project, **settings):
    """A run that the project knows, without checkpoints."""
    folder = project / "runs" / "mine"
    folder.mkdir(parents=True)
    words = ["name=mine", *(f"{key}={value}" for key, value in settings.items())]
    (folder / "config.yaml").write_text(dump(load("shakespeare", words).config))
    return folder


@pytest.mark.parametrize("by", ["name", "folder"])
def test_a_run_brings_back_its_own(tmp_path, project, store, by):
    copy_checkpoint(commit(store, 5), str(tmp_path / "second" / "mine"), keep=3)
    folder = trained(project, **{"checkpoint.mirror": "second", "checkpoints_folder": str(tmp_path / "elsewhere")})
    run = {"name": "mine", "folder": str(folder)}[by]
    assert trainer("checkpoints", "fetch", run).out.startswith(f"{tmp_path / 'second' / 'mine'}  (1, ")
    assert trainer("checkpoints", "fetch", run, "latest").code == 0
    assert steps(tmp_path / "elsewhere" / "mine") == [5]


def test_a_run_without_a_second_place_is_told_to_name_one(project):
    trained(project)
    assert "mine has no mirror of its own (checkpoint.mirror is empty)" in refused("mine", "latest")


def test_what_is_not_there_is_refused_with_what_is(place, project):
    assert "there is no checkpoint 7 in" in refused(place, 7) and "10, 5" in refused(place, 7)
    above = place.removesuffix("/mine")
    assert "it holds the folders mine: name one of them" in refused(above)
    assert "there are no checkpoints of a run in" in refused(f"{place}/nothing", "latest")


def test_nothing_is_replaced_and_a_folder_in_use_is_left_alone(place, project):
    assert trainer("checkpoints", "fetch", place, "5").code == 0
    assert "exists already, and is not replaced" in refused(place, 5)
    with locks.take(project / "checkpoints" / "mine" / ".lock"):
        assert "another process writes checkpoints to" in refused(place, 10)
    assert steps(project / "checkpoints" / "mine") == [5]


def test_a_place_that_cannot_be_written_to_is_refused(place, project):
    (project / "file").touch()
    assert "cannot be written" in refused(place, 5, "--to", project / "file" / "inside")


def test_a_damaged_copy_is_refused_and_nothing_is_left(tmp_path, project, store):
    where = tmp_path / "second" / "mine"
    copy_checkpoint(commit(store, 5), str(where), keep=3)
    flip(where / "step-00000005" / "optimizer.bin")
    assert "is damaged" in refused(where, "latest")
    assert steps(project / "checkpoints" / "mine") == []


def test_a_copy_whose_manifest_is_damaged_is_never_passed_over_in_silence(tmp_path, project, store):
    where = tmp_path / "second" / "mine"
    for step, val_loss in ((5, 1.75), (10, 1.5)):
        copy_checkpoint(commit(store, step, val_loss=val_loss), str(where), keep=3)
    flip(where / "step-00000010" / "manifest.json", 9)
    assert "step-00000010" in trainer("checkpoints", "fetch", str(where)).out
    assert "step-00000010" in refused(where, 10)
    for wanted in ("latest", "best"):
        typed = trainer("checkpoints", "fetch", str(where), wanted, "--to", str(project / wanted))
        assert typed.code == 0 and steps(project / wanted) == [5] and "step-00000010" in typed.out + typed.err
    flip(where / "step-00000005" / "manifest.json", 9)
    assert "step-00000005" in refused(where, "latest")


def test_a_copy_of_what_was_set_aside_as_diverged_is_not_brought_back_as_the_latest_or_the_best(
    tmp_path, project, store
):
    where = tmp_path / "second" / "mine"
    for step, val_loss in ((5, 1.75), (10, 1.5)):
        copy_checkpoint(commit(store, step, val_loss=val_loss), str(where), keep=3)
    folder = trained(project, **{"checkpoint.mirror": "second"})
    set_diverged_aside(store, 10, None, Journal(folder))
    for wanted in ("latest", "best"):
        typed = trainer("checkpoints", "fetch", "mine", wanted, "--to", str(project / wanted))
        assert typed.code == 0 and steps(project / wanted) == [5] and "step-00000010" in typed.out + typed.err
    assert trainer("checkpoints", "fetch", "mine", "10").code == 0, "who names it gets it"
    set_diverged_aside(store, 0, None, Journal(folder))
    assert "5" in refused("mine", "latest", "--to", project / "none")


def test_a_place_that_cannot_be_opened_is_refused(project):
    assert "cannot be opened" in refused("nonsense://bucket/mine")
