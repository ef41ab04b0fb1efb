import os
import shutil

import pytest

from tests.messages import refuses
from tests.small_checkpoints import NAMES, OUTSIDE, commit, flip, lead_out
from trainer import files, locks
from trainer.checkpoint.format.manifest import read_manifest
from trainer.checkpoint.format.store import CheckpointStore, verify
from trainer.checkpoint.mirror.duplicate import duplicate
from trainer.checkpoint.resume.select import resolve
from trainer.errors import CheckpointError


@pytest.fixture
def source(store):
    for step in (5, 10):
        commit(store, step, val_loss=float(step))
    return store


@pytest.fixture
def target(tmp_path):
    return tmp_path / "disk" / "backup"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_copy_is_equal_to_the_byte_sound_and_can_be_resumed_from(source, target):
    text = duplicate(source.folder, "best", target)
    copied = target / "step-00000005"
    assert text.startswith(f"{copied}: ") and "every byte read back and sound" in text
    assert contents(copied) == contents(source.path(5)) and verify(copied) == []
    assert resolve(CheckpointStore(target), "latest").path == copied
    duplicate(source.folder, "latest", target)
    assert names(target) == [".lock", "step-00000005", "step-00000010"]


def test_nothing_is_overwritten(source, target):
    duplicate(source.folder, "5", target)
    (target / "step-00000005" / "mine").write_text("mine")
    for folder in (target, source.folder):
        with refuses(CheckpointError, "step-00000005", "another folder"):
            duplicate(source.folder, "5", folder)
    assert (target / "step-00000005" / "mine").exists()


def refusal(source, target, wanted="5"):
    """What a copy that must fail says; nothing of it is left."""
    with pytest.raises(CheckpointError) as refused:
        duplicate(source.folder, wanted, target)
    assert names(target) == [".lock"]
    return str(refused.value)


def test_a_damaged_checkpoint_is_not_copied(source, target):
    flip(source.path(5) / "optimizer.bin")
    said = refusal(source, target)
    assert str(source.path(5) / "optimizer.bin") in said
    assert "take another checkpoint" in said


@pytest.mark.parametrize("name", ["optimizer.bin", "manifest.json"])
def test_a_disk_that_stores_other_bytes_is_found(source, target, monkeypatch, name):
    """What is read back after the cache is dropped is what the disk has."""
    monkeypatch.setattr(files, "forget_cached", lambda path: flip(path) if path.name == name else None)
    said = refusal(source, target)
    assert name in said
    assert "disk" in said


def test_the_name_comes_after_every_byte_was_read_back(source, target, monkeypatch):
    seen, real = [], files.forget_cached
    monkeypatch.setattr(files, "forget_cached", lambda path: (seen.append((path.name, names(target))), real(path)))
    duplicate(source.folder, "5", target)
    assert {name for name, _ in seen} == {*NAMES, "manifest.json"}
    assert {tuple(there) for _, there in seen} == {(".lock", ".staging-00000005")}


def test_what_a_killed_copy_left_is_written_anew(source, target):
    (target / ".staging-00000005").mkdir(parents=True)
    (target / ".staging-00000005" / "half").write_text("x")
    duplicate(source.folder, "5", target)
    assert names(target) == [".lock", "step-00000005"] and verify(target / "step-00000005") == []


def test_a_disk_without_room_is_told_before_and_a_full_one_leaves_nothing(source, target, monkeypatch):
    monkeypatch.setattr(files, "free_bytes", lambda path: read_manifest(source.path(5)).num_bytes - 1)
    with refuses(CheckpointError, str(target), "room"):
        duplicate(source.folder, "5", target)
    assert not target.exists()
    monkeypatch.undo()
    monkeypatch.setattr(
        files, "fsync_open_file", lambda file: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(
        CheckpointError, match="could not be copied to .*No space left on device.*; fix that, and copy again"
    ):
        duplicate(source.folder, "5", target)
    assert names(target) == [".lock"]


def test_a_checkpoint_that_is_pruned_while_it_is_copied_is_told(source, target, monkeypatch):
    monkeypatch.setattr(files, "forget_cached", lambda path: shutil.rmtree(source.path(5), ignore_errors=True))
    said = refusal(source, target)
    assert str(source.path(5)) in said
    assert "pin" in said


def test_two_do_not_write_into_one_folder(source, target):
    with (
        locks.take(target / ".lock"),
        refuses(CheckpointError, str(target), "another process"),
    ):
        duplicate(source.folder, "5", target)
    duplicate(source.folder, "5", target)


def test_a_target_that_cannot_be_a_folder_is_told(source, tmp_path):
    (tmp_path / "file").write_text("x")
    with refuses(CheckpointError, "file/inner"):
        duplicate(source.folder, "5", tmp_path / "file" / "inner")


@pytest.mark.parametrize("name", ["fsync", "rename", "mkdir"])
def test_whatever_operation_fails_there_is_a_whole_copy_or_none(source, tmp_path, monkeypatch, name):
    for n in range(1, 50):
        target, count = tmp_path / f"{name}-{n}", 0
        target.mkdir()
        real = getattr(os, name)

        def failing(*arguments, _real=real, _n=n, **keywords):
            nonlocal count
            count += 1
            if count == _n:
                raise OSError(5, "Input/output error")
            return _real(*arguments, **keywords)

        with monkeypatch.context() as patch:
            patch.setattr(os, name, failing)
            try:
                duplicate(source.folder, "5", target)
            except CheckpointError as error:
                assert "Input/output error" in str(error)
        committed = [path for path in target.iterdir() if path.name.startswith("step-")]
        assert all(verify(path) == [] for path in committed) and {path.name for path in target.iterdir()} <= {
            ".lock",
            "step-00000005",
        }
        if count < n:
            break
    assert n > 1 and committed


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_file_that_leads_out_of_its_folder_is_not_copied(source, target, name):
    lead_out(source.path(5), name)
    with pytest.raises(CheckpointError) as refused:
        duplicate(source.folder, "5", target)
    assert repr(name) in str(refused.value)
    assert names(target) == [".lock"]
