import json
import shutil

import pytest

from tests.small_checkpoints import commit, flip
from trainer.checkpoint.listing import listing, verification
from trainer.errors import CheckpointError


@pytest.fixture
def three(store):
    for step, val_loss in ((5, 1.0), (10, None), (15, 2.0)):
        commit(store, step, val_loss=val_loss, tokens=step * 1000)
    return store


def test_checkpoints_are_listed_with_why_they_are_kept(three):
    lines = listing(three.folder).splitlines()
    assert lines[0] == str(three.folder)
    assert [line.split()[0] for line in lines[2:]] == ["15", "10", "5"]
    assert "latest, rolling" in lines[2] and "2.0000" in lines[2] and "15k" in lines[2] and lines[2].endswith("yes")
    assert "best" in lines[4] and "1.0000" in lines[4]


def test_a_listing_for_programs_is_one_object_a_line(three):
    facts = [json.loads(line) for line in listing(three.folder, as_json=True).splitlines()]
    assert [fact["step"] for fact in facts] == [15, 10, 5]
    assert facts[2]["tiers"] == ["best"] and facts[0]["problem"] is None and facts[0]["bytes"] > 0


def test_a_checkpoint_that_is_not_whole_is_listed_with_its_problem(three):
    (three.path(15) / "optimizer.bin").unlink()
    (three.path(10) / "manifest.json").unlink()
    (three.folder / ".damaged-step-00000020").mkdir()
    text = listing(three.folder)
    assert (
        "optimizer.bin is missing" in text
        and "has no manifest.json" in text
        and "set aside: .damaged-step-00000020" in text
    )


def test_checkpoints_none_of_which_is_whole_are_listed(store):
    (commit(store, 5) / "manifest.json").unlink()
    assert "has no manifest.json" in listing(store.folder)


def test_one_checkpoint_is_listed_by_its_folder_under_any_name(three, tmp_path):
    shutil.copytree(three.path(5), tmp_path / "copy")
    for folder in (three.path(5), tmp_path / "copy"):
        (line,) = listing(folder).splitlines()[2:]
        assert line.split()[0] == "5" and line.endswith("yes")


def test_every_byte_is_read_to_verify(three):
    text, all_sound = verification(three.folder)
    assert all_sound and text.count("sound (") == 3
    flip(three.path(10) / "optimizer.bin", 3)
    text, all_sound = verification(three.folder)
    assert not all_sound and text.count("sound (") == 2 and "step-00000010: optimizer.bin is damaged" in text


def test_a_folder_without_checkpoints_is_refused(tmp_path):
    for look in (listing, verification):
        with pytest.raises(CheckpointError, match="holds no checkpoints"):
            look(tmp_path)
