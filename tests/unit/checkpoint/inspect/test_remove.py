import pytest

from tests.messages import refuses
from tests.small_checkpoints import commit, flip
from trainer import files, locks
from trainer.checkpoint.inspect.pin import set_pinned
from trainer.checkpoint.inspect.remove import remove
from trainer.errors import CheckpointError
from trainer.journal import Journal, read_events


@pytest.fixture
def three(store):
    for step, val_loss in ((5, 1.0), (10, None), (15, 2.0)):
        commit(store, step, val_loss=val_loss)
    store.point_links()
    return store


@pytest.mark.parametrize(
    ("wanted", "left"), [("10", [15, 5]), ("latest", [10, 5]), ("best", [15, 10]), ("00005", [15, 10])]
)
def test_the_checkpoint_that_is_named_goes_and_the_links_follow(three, wanted, left):
    remove(three.folder, wanted)
    assert [entry.step for entry in three.entries()] == left
    assert (three.folder / "latest").resolve() == three.path(left[0])
    assert not list(three.folder.glob(".removing-*"))


def test_a_damaged_one_and_one_that_was_set_aside_go_too(three):
    flip(three.path(10) / "manifest.json", 9)
    remove(three.folder, "10")
    aside = files.set_aside(three.path(5), "abandoned")
    remove(three.folder, aside.name)
    assert [entry.step for entry in three.entries()] == [15] and three.set_aside_folders() == []


def test_what_is_pinned_the_last_that_is_whole_and_what_is_not_there_stay(three, tmp_path):
    set_pinned(three.folder, "10", pinned=True)
    with refuses(CheckpointError, "step-00000010", "pinned"):
        remove(three.folder, "10")
    for wanted in ("7", str(tmp_path), ".damaged-step-00000010"):
        with pytest.raises(CheckpointError):
            remove(three.folder, wanted)
    set_pinned(three.folder, "10", pinned=False)
    for step in (5, 15):
        (three.path(step) / "optimizer.bin").unlink()
    with refuses(CheckpointError, "step-00000010", "last"):
        remove(three.folder, "10")
    with refuses(CheckpointError, "step-00000010", "run"):
        remove(three.path(10), "10")
    remove(three.folder, "15")
    assert [entry.step for entry in three.entries()] == [10, 5]


def test_nothing_of_a_live_run_is_touched(three, monkeypatch):
    monkeypatch.setattr(locks, "take", lambda path: None)
    with refuses(CheckpointError, "another process"):
        remove(three.folder, "5")
    assert [entry.step for entry in three.entries()] == [15, 10, 5]


def test_the_journal_of_its_run_says_so(three, monkeypatch):
    monkeypatch.setattr(files, "project_folder", lambda: three.folder.parent)
    run = three.folder.parent / "runs" / three.folder.name
    run.mkdir(parents=True)
    (run / "config.yaml").touch()
    remove(three.folder, "5")
    assert read_events(run) == [], "a run without a journal is none"
    Journal(run).write("start")
    remove(three.folder, "10")
    (_, event) = read_events(run)
    assert (event["event"], event["name"]) == ("remove", "step-00000010") and event["bytes"] > 0


def test_the_last_one_whose_bytes_are_right_stays_too(three):
    for step in (5, 15):
        flip(three.path(step) / "optimizer.bin")
    with refuses(CheckpointError, "step-00000010", "last"):
        remove(three.folder, "10")
    remove(three.folder, "15")
    assert [entry.step for entry in three.entries()] == [10, 5]
