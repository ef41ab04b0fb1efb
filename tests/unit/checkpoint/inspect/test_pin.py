import shutil
import threading

import pytest

from tests.messages import refuses
from tests.small_checkpoints import commit
from trainer import files
from trainer.checkpoint.format.manifest import MANIFEST, read_manifest
from trainer.checkpoint.format.retention import Policy
from trainer.checkpoint.format.store import REMOVING, verify
from trainer.checkpoint.inspect import pin
from trainer.checkpoint.inspect.pin import set_pinned
from trainer.errors import CheckpointError


@pytest.fixture
def three(store):
    for step in (1, 2, 3):
        commit(store, step)
    return store


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_pinned_checkpoint_is_kept_until_the_pin_goes(three):
    assert set_pinned(three.folder, "1", pinned=True) == f"{three.path(1)} is pinned"
    assert read_manifest(three.path(1)).pinned and verify(three.path(1)) == []
    three.prune(Policy(1, 0))
    assert [entry.step for entry in three.entries()] == [3, 1]
    assert set_pinned(three.folder, "1", pinned=False) == f"{three.path(1)} is not pinned"
    three.prune(Policy(1, 0))
    assert [entry.step for entry in three.entries()] == [3]


def test_a_pin_changes_nothing_else(three):
    before = {path.name: path.read_bytes() for path in three.path(1).iterdir()}
    set_pinned(three.folder, "1", pinned=True)
    assert set_pinned(three.folder, "1", pinned=True).endswith("is pinned already")
    set_pinned(three.folder, "1", pinned=False)
    assert set_pinned(three.folder, "1", pinned=False).endswith("is not pinned already")
    assert {path.name: path.read_bytes() for path in three.path(1).iterdir()} == before
    assert names(three.folder) == [f"step-{n:08d}" for n in (1, 2, 3)]


def test_a_checkpoint_is_whole_at_every_moment_while_it_is_pinned(three, monkeypatch):
    """Its folder never holds a file too many: whoever looks, or a crash, finds the old manifest or the new one."""
    looked = []
    real = files.fsync_open_file
    monkeypatch.setattr(files, "fsync_open_file", lambda file: (looked.append(verify(three.path(2))), real(file)))
    set_pinned(three.folder, "2", pinned=True)
    assert looked == [[]]


def test_a_pin_that_is_killed_half_way_leaves_a_whole_checkpoint_and_what_a_start_sweeps(three, monkeypatch):
    monkeypatch.setattr("pathlib.Path.unlink", lambda *_, **__: None)
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        set_pinned(three.folder, "2", pinned=True)
    monkeypatch.undo()
    assert verify(three.path(2)) == [] and not read_manifest(three.path(2)).pinned
    assert len(three.sweep()) == 1 and names(three.folder) == [f"step-{n:08d}" for n in (1, 2, 3)]


@pytest.mark.parametrize("moment", ["fsync_open_file", "fsync_folder"])
def test_a_checkpoint_that_is_pruned_while_it_is_pinned_is_told(three, monkeypatch, moment):
    real = getattr(files, moment)

    def pruned_first(argument):
        monkeypatch.setattr(files, moment, real)
        shutil.rmtree(three.path(1))
        real(argument)

    monkeypatch.setattr(files, moment, pruned_first)
    with refuses(CheckpointError, "removed"):
        set_pinned(three.folder, "1", pinned=True)
    assert names(three.folder) == ["step-00000002", "step-00000003"]


def test_a_pin_that_came_just_before_a_prune_took_the_name_away_is_confirmed(three, monkeypatch):
    """Pruning finds the pin and gives the name back; that may be after the command has ended."""
    real = files.fsync_folder

    def loses_its_name(path):
        monkeypatch.setattr(files, "fsync_folder", real)
        three.path(1).rename(three.folder / ".removing-step-00000001")
        real(path)

    monkeypatch.setattr(files, "fsync_folder", loses_its_name)
    monkeypatch.setattr(pin, "LONGEST_REMOVAL_SECONDS", 0.1)
    assert set_pinned(three.folder, "1", pinned=True).endswith("is pinned")
    three.prune(Policy(1, 0))
    assert [entry.step for entry in three.entries()] == [3, 1]


@pytest.mark.parametrize("comes_back", [False, True])
def test_a_pin_that_came_into_a_folder_without_its_name_is_what_the_prune_makes_of_it(three, monkeypatch, comes_back):
    """The manifest may land there after the prune has looked for a pin: what counts is whether the name comes back."""
    path = three.path(2)
    nameless = path.with_name(f"{REMOVING}{path.name}")
    write = files.write_atomic

    def write_beside_a_prune(target, content, **options):
        write(target, content, **options)
        path.rename(nameless)
        ends = (lambda: nameless.rename(path)) if comes_back else (lambda: shutil.rmtree(nameless))
        threading.Timer(0.2, ends).start()

    monkeypatch.setattr(files, "write_atomic", write_beside_a_prune)
    if comes_back:
        assert set_pinned(three.folder, "2", pinned=True) == f"{path} is pinned"
        assert read_manifest(path).pinned
    else:
        with refuses(CheckpointError, path, "was removed"):
            set_pinned(three.folder, "2", pinned=True)


def test_a_checkpoint_that_is_not_whole_is_not_pinned_but_loses_its_pin(three):
    set_pinned(three.folder, "2", pinned=True)
    (three.path(2) / "optimizer.bin").unlink()
    assert set_pinned(three.folder, "2", pinned=False).endswith("is not pinned")
    with refuses(CheckpointError, "step-00000002", "optimizer.bin", "pin another"):
        set_pinned(three.folder, "2", pinned=True)


def test_a_manifest_that_cannot_be_written_is_told(three, monkeypatch):
    before = (three.path(2) / MANIFEST).read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(
        CheckpointError, match="cannot be rewritten .*No space left on device.*; fix that and try again"
    ):
        set_pinned(three.folder, "2", pinned=True)
    assert (three.path(2) / MANIFEST).read_bytes() == before and len(names(three.folder)) == 3
