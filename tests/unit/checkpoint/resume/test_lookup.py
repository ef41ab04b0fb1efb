import shutil

import pytest

from tests.messages import logged, refuses
from tests.small_checkpoints import commit
from trainer.checkpoint.resume.lookup import all_of, one_of
from trainer.errors import CheckpointError


@pytest.fixture
def three(store):
    for step, val_loss in ((5, 1.0), (10, None), (15, 2.0)):
        commit(store, step, val_loss=val_loss)
    return store


def test_a_checkpoint_is_named_by_a_word_a_step_or_a_path(three, tmp_path):
    shutil.copytree(three.path(10), tmp_path / "copy")
    wanted = {"latest": 15, "best": 5, "10": 10, "00010": 10, str(three.path(15)): 15, str(tmp_path / "copy"): 10}
    assert {word: one_of(three.folder, word).step for word in wanted} == wanted


def test_latest_is_whole_and_tells_which_it_passes_over_the_best_is_whole_or_refused_and_a_step_may_be_damaged(
    three, caplog
):
    (three.path(5) / "optimizer.bin").unlink()
    with refuses(CheckpointError, "step-00000005", "step 15"):
        one_of(three.folder, "best")
    (three.path(15) / "optimizer.bin").unlink()
    assert one_of(three.folder, "latest").step == 10
    logged(caplog, "step-00000015")
    assert one_of(three.folder, "15").problem == "optimizer.bin is missing"
    with refuses(CheckpointError, "step-00000005", "validation loss"):
        one_of(three.folder, "best")
    (three.path(10) / "optimizer.bin").unlink()
    with refuses(CheckpointError, str(three.folder), "step"):
        one_of(three.folder, "latest")


def test_what_is_not_there_is_told_with_what_is(three):
    with refuses(CheckpointError, "step 7", "15, 10, 5"):
        one_of(three.folder, "7")
    with refuses(CheckpointError, "newest", "latest", "best", "step", "path"):
        one_of(three.folder, "newest")
    (three.path(10) / "manifest.json").write_text("{")
    with refuses(CheckpointError, "step-00000010", "copy"):
        one_of(three.folder, "10")


def test_all_of_one_checkpoints_folder_is_that_one(three, tmp_path):
    assert [entry.step for entry in all_of(three.path(10))] == [10]
    assert [entry.step for entry in all_of(three.folder)] == [15, 10, 5]
    with refuses(CheckpointError, str(tmp_path)):
        all_of(tmp_path)
