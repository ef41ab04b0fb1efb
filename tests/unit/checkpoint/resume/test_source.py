"""What model.init_from means: a folder, or a checkpoint of a run by its name and step."""

import pytest

from tests.messages import refuses
from tests.small_checkpoints import commit, flip
from tests.sources import write_source
from trainer import files
from trainer.checkpoint.resume.source import check_bytes, find_source
from trainer.errors import ConfigError

MODEL = {"model_type": "llama", "vocab_size": 320}


@pytest.fixture
def run(store, monkeypatch):
    """The checkpoints of a run in a project of its own: steps 5 and 10."""
    monkeypatch.setattr(files, "project_folder", lambda: store.folder.parent.parent)
    for step in (5, 10):
        commit(store, step, model=MODEL, vocab_size=257)
    return store


def test_a_run_is_begun_from_by_its_newest_checkpoint_or_by_a_step(run):
    newest, fifth = find_source(f"run:{run.folder.name}"), find_source(f"run:{run.folder.name}@5")
    assert (newest.name, newest.folder) == (f"run:{run.folder.name}@10", run.path(10))
    assert (fifth.name, fifth.fields, fifth.vocab_size) == (f"run:{run.folder.name}@5", MODEL, 257)
    assert fifth.is_checkpoint and find_source(str(run.path(5))).folder == run.path(5)
    check_bytes(fifth)


def test_a_damaged_checkpoint_is_found_before_its_weights_are_loaded(run):
    flip(run.path(5) / "model.safetensors")
    with refuses(ConfigError, f"run:{run.folder.name}@5", "model.safetensors", "run:NAME@STEP"):
        check_bytes(find_source(f"run:{run.folder.name}@5"))
    (run.path(5) / "optimizer.bin").unlink()
    with refuses(ConfigError, "optimizer.bin", "run:NAME@STEP"):
        find_source(f"run:{run.folder.name}@5")


@pytest.mark.parametrize(
    ("wanted", "named"),
    [
        ("run:", ["run:NAME@STEP"]),
        ("run:nobody", ["nobody"]),
        ("run:{}@7", ["7", "5", "10"]),
        ("{}", ["step-00000010", "run:NAME"]),
    ],
)
def test_what_is_no_checkpoint_is_refused_with_what_would_do(run, wanted, named):
    name = run.folder.name if wanted.startswith("run:") else str(run.folder)
    with refuses(ConfigError, "model.init_from", *named):
        find_source(wanted.format(name))


def test_a_relative_folder_is_meant_from_the_project(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "project_folder", lambda: tmp_path)
    write_source(tmp_path / "models" / "a")
    found = find_source("models/a")
    assert (found.name, found.folder, found.is_checkpoint) == ("models/a", tmp_path / "models" / "a", False)
