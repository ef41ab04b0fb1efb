import shutil

import pytest

from tests.messages import refuses
from tests.small_checkpoints import commit, flip
from trainer.checkpoint.resume.lookup import one_of
from trainer.checkpoint.resume.select import check, check_not_beyond, locate, resolve
from trainer.errors import CheckpointError


def refusal(store, wanted):
    with pytest.raises(CheckpointError) as caught:
        resolve(store, wanted)
    return str(caught.value)


def test_a_run_without_checkpoints_starts_fresh(store):
    for wanted in ("latest", "none"):
        resolution = resolve(store, wanted)
        assert resolution.path is None and resolution.manifest is None


def test_latest_is_the_newest(store):
    for step in (5, 10, 15):
        commit(store, step)
    resolution = resolve(store, "latest")
    assert resolution.path == store.path(15) and resolution.manifest.step == 15 and resolution.refused == {}


def test_a_damaged_newest_checkpoint_is_passed_over(store):
    for step in (5, 10, 15, 20):
        commit(store, step)
    flip(store.path(20) / "model.safetensors", 7)
    (store.path(15) / "optimizer.bin").unlink()
    resolution = resolve(store, "latest")
    assert resolution.path == store.path(10)
    assert resolution.refused == {
        store.path(20): "model.safetensors is damaged: its bytes do not match their digest",
        store.path(15): "optimizer.bin is missing",
    }


def test_a_run_none_of_whose_checkpoints_is_sound_never_starts_over_silently(store):
    for step in (5, 10):
        flip(commit(store, step) / "model.safetensors")
    text = refusal(store, "latest")
    assert "holds 2 checkpoints and none is sound" in text and "step-00000010: model.safetensors is damaged" in text


def test_none_never_starts_over_beside_checkpoints(store):
    commit(store, 5)
    assert "already holds 1 checkpoint, the newest of step 5" in refusal(store, "none")


def test_best_is_the_lowest_validation_loss_that_is_sound(store):
    for step, val_loss in ((5, 1.0), (10, 2.0), (15, None), (20, 3.0)):
        commit(store, step, val_loss=val_loss)
    assert resolve(store, "best").path == store.path(5)
    flip(store.path(5) / "optimizer.bin")
    resolution = resolve(store, "best")
    assert resolution.path == store.path(10) and list(resolution.refused) == [store.path(5)]


def test_best_without_a_validation_loss_is_refused(store):
    commit(store, 5)
    assert "none is best" in refusal(store, "best")


def test_best_with_every_evaluated_one_damaged_is_refused(store):
    flip(commit(store, 5, val_loss=1.0) / "optimizer.bin")
    commit(store, 10)
    assert "holds 1 evaluated checkpoint" in refusal(store, "best") or "none is sound" in refusal(store, "best")


@pytest.mark.parametrize("wanted", ["5", "05", "00000005"])
def test_a_step_is_that_step(store, wanted):
    for step in (5, 10):
        commit(store, step)
    assert resolve(store, wanted).path == store.path(5)


def test_a_step_that_is_not_there_is_answered_with_those_that_are(store):
    assert "holds none yet" in refusal(store, "7")
    for step in (5, 10):
        commit(store, step)
    text = refusal(store, "7")
    assert "there is no checkpoint" in text and "take one of the steps in" in text and text.endswith(": 10, 5")


def test_a_step_that_is_damaged_is_refused_and_not_replaced_by_another(store):
    commit(store, 5)
    flip(commit(store, 10) / "optimizer.bin")
    assert "is not sound (optimizer.bin is damaged" in refusal(store, "10")


def test_a_digit_that_is_no_number_is_taken_for_a_path(store):
    assert "give latest, best, a step, or the path" in refusal(store, "\u00b2")


def test_a_path_is_that_folder(store, tmp_path):
    shutil.copytree(commit(store, 5), tmp_path / "elsewhere")
    resolution = resolve(store, str(tmp_path / "elsewhere"))
    assert resolution.path == tmp_path / "elsewhere" and resolution.manifest.step == 5
    flip(tmp_path / "elsewhere" / "optimizer.bin")
    assert "is not sound" in refusal(store, str(tmp_path / "elsewhere"))
    assert "give latest, best, a step, or the path" in refusal(store, str(tmp_path / "nowhere"))


def test_a_checkpoint_to_read_is_located_by_folder_or_by_word(store):
    for step, val_loss in ((5, 1.0), (10, 2.0)):
        commit(store, step, val_loss=val_loss)
    places = (
        (store.path(5), "latest", 5),
        (store.folder, "latest", 10),
        (store.folder, "best", 5),
        (store.folder, "05", 5),
    )
    for folder, word, step in places:
        located = locate(folder, word)
        assert (located.path, located.manifest.step, located.passed_over) == (store.path(step), step, {})
    flip(store.path(5) / "optimizer.bin")
    with refuses(CheckpointError, "step-00000005", "copy"):
        locate(store.path(5), "latest")


def harm(path, how):
    """Makes a checkpoint one that is not sound, in one of the ways in which a disk does it."""
    if how == "flip":
        flip(path / "model.safetensors", 7)
    elif how == "cut":
        (path / "model.safetensors").write_bytes(b"")
    else:
        flip(path / "manifest.json", 20)


@pytest.mark.parametrize("how", ["flip", "cut", "manifest"])
def test_a_damaged_checkpoint_that_was_named_is_refused_with_the_next_one_and_latest_tells_what_it_passes_over(
    store, how
):
    for step, val_loss in ((5, 3.0), (10, 2.0), (15, 2.5), (20, 1.0)):
        commit(store, step, val_loss=val_loss)
    harm(store.path(20), how)
    with refuses(CheckpointError, "step-00000020", "--checkpoint 15"):
        locate(store.folder, "20")
    latest = locate(store.folder, "latest")
    assert latest.manifest.step == 15 and list(latest.passed_over) == ["step-00000020"]
    assert latest.facts() == {"step": 15, "checkpoint": str(store.path(15)), "passed_over": latest.passed_over}
    assert "step-00000020" in latest.words and "15" in latest.words
    if how == "manifest":  # nobody knows what its validation loss was
        best = locate(store.folder, "best")
        assert best.manifest.step == 10 and list(best.passed_over) == ["step-00000020"]
    else:
        with refuses(CheckpointError, "step-00000020", "--checkpoint 10"):
            locate(store.folder, "best")
        assert list(resolve(store, "best").refused) == [store.path(20)], "a resume tells it too"


def test_nothing_is_located_where_there_is_nothing(tmp_path):
    with refuses(CheckpointError, str(tmp_path), "train"):
        locate(tmp_path, "latest")
    (tmp_path / "config.json").touch()
    with refuses(CheckpointError, "transformers", "checkpoints", "run"):
        locate(tmp_path, "latest")


@pytest.mark.parametrize("word", ["none", ""])
def test_a_word_that_names_no_checkpoint_is_refused_where_one_is_to_be_read(store, word):
    commit(store, 5)
    for folder in (store.folder, store.path(5)):
        with refuses(CheckpointError, repr(word), "latest", "best", "step"):
            locate(folder, word)


def test_the_folder_of_all_checkpoints_is_not_taken_for_a_damaged_one(store):
    for step in (5, 10):
        commit(store, step)
    text = refusal(store, str(store.folder))
    assert f"{store.folder} is no checkpoint: it holds 2 of them; name the one to take, e.g. {store.path(10)}" in text


# What is looked at before a launch


@pytest.mark.parametrize("wanted", ["7", "nowhere", "none", "best"])
def test_what_names_and_sizes_tell_is_refused_before_a_launch(store, wanted):
    commit(store, 5)
    with pytest.raises(CheckpointError) as caught:
        check(store, wanted, 100, store.folder)
    assert str(caught.value) == refusal(store, wanted)


def test_a_look_reads_no_file_and_leaves_latest_to_the_resume(store):
    flip(commit(store, 5, val_loss=1.0) / "optimizer.bin")
    for wanted in ("latest", "5", "best", str(store.path(5))):
        check(store, wanted, 100, store.folder)
        assert "is damaged" in refusal(store, wanted)
    (store.path(5) / "optimizer.bin").unlink()
    check(store, "latest", 100, store.folder)
    with refuses(CheckpointError, "optimizer.bin"):
        check(store, "5", 100, store.folder)


def test_going_back_to_what_was_pruned_since_is_not_refused_once_the_run_has_gone_on(store):
    commit(store, 10, origin="5")
    check(store, "5", 100, store.folder)
    with refuses(CheckpointError, "checkpoint"):
        check(store, "6", 100, store.folder)


@pytest.mark.parametrize("wanted", ["latest", "10", "best"])
def test_a_run_that_stands_beyond_max_steps_is_refused_before_a_launch(store, wanted):
    commit(store, 10, val_loss=1.0)
    check(store, wanted, 10, store.folder)
    with refuses(CheckpointError, "max_steps", "9", "10", "launch.sh finish"):
        check(store, wanted, 9, store.folder)
    commit(store, 20, val_loss=2.0)
    check(store, "10", 15, store.folder)
    with refuses(CheckpointError, "20"):
        check(store, "latest", 15, store.folder)
    flip(store.path(20) / "optimizer.bin")
    check_not_beyond(store.folder, 10, 15)


def test_a_best_one_whose_folder_has_another_steps_name_is_refused_by_name(store):
    commit(store, 5, val_loss=2.0)
    commit(store, 10, val_loss=1.0).rename(store.path(15))
    assert list(resolve(store, "best").refused) == [store.path(15)]
    for choose in (lambda: locate(store.folder, "best"), lambda: one_of(store.folder, "best")):
        with pytest.raises(CheckpointError, match="step-00000015"):
            choose()
