import json
import shutil

import pytest

from tests.messages import refuses
from tests.small_checkpoints import CONFIG, commit, flip, manifest_of, write_files
from trainer import files, locks
from trainer.checkpoint.format.manifest import describe_files
from trainer.checkpoint.format.store import folder_bytes
from trainer.checkpoint.inspect.listing import kept_as, listing, pruning, verification
from trainer.errors import CheckpointError, ConfigError


@pytest.fixture
def three(store):
    for step, val_loss in ((5, 1.0), (10, None), (15, 2.0)):
        commit(store, step, val_loss=val_loss, tokens=step * 1000)
    return store


def test_checkpoints_are_listed_with_why_they_are_kept(three):
    lines = listing(three.folder).splitlines()
    assert lines[0].startswith(f"{three.folder}  (3, ") and lines[1].split()[-1] == "sound?"
    assert [line.split()[0] for line in lines[2:]] == ["15", "10", "5"]
    assert "latest, rolling" in lines[2] and "2.0000" in lines[2] and "15k" in lines[2]
    assert all(line.endswith("whole, never verified") for line in lines[2:])
    assert "best" in lines[4] and "1.0000" in lines[4]


def test_a_listing_for_programs_is_one_object_a_line(three):
    facts = [json.loads(line) for line in listing(three.folder, as_json=True).splitlines()]
    assert [fact["step"] for fact in facts] == [15, 10, 5]
    assert facts[2]["tiers"] == ["best"] and facts[0]["problem"] is None and facts[0]["bytes"] > 0
    assert facts[0]["verified"] is None and facts[0]["epoch"] is None and facts[0]["pinned"] is False
    verification(three.folder)
    facts = [json.loads(line) for line in listing(three.folder, as_json=True).splitlines()]
    assert all(fact["verified"]["problems"] == [] and fact["verified"]["when"] for fact in facts)


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
        assert line.split()[0] == "5" and line.endswith("whole, never verified")
    assert "best" in listing(three.path(5)) and "best" not in listing(tmp_path / "copy"), "a copy belongs to no run"


def test_every_byte_is_read_to_verify(three):
    text, all_sound = verification(three.folder)
    assert all_sound and text.count("sound (") == 3
    flip(three.path(10) / "optimizer.bin", 3)
    text, all_sound = verification(three.folder)
    assert not all_sound and text.count("sound (") == 2 and "step-00000010: optimizer.bin is damaged" in text


def test_what_a_verification_found_is_shown_by_the_next_listing(three):
    flip(three.path(10) / "optimizer.bin", 3)
    assert "DAMAGED" not in listing(three.folder)
    verification(three.folder)
    lines = listing(three.folder).splitlines()
    assert "whole, verified " in lines[2]
    assert lines[2].endswith("s ago")
    assert "DAMAGED, found 0" in lines[3] and lines[3].endswith(
        "optimizer.bin is damaged: its bytes do not match their digest"
    )
    flip(three.path(10) / "optimizer.bin", 3)
    verification(three.path(10))
    assert "DAMAGED" not in listing(three.folder), "the last verification counts"


def test_a_verification_is_remembered_for_these_very_files(three):
    verification(three.folder)
    shutil.rmtree(three.path(10))
    staging = three.begin(10)
    write_files(staging, 11)
    three.commit(staging, manifest_of(10, files=describe_files(staging)))
    assert listing(three.folder).splitlines()[3].endswith("whole, never verified")


def test_a_copy_outside_of_a_run_is_verified_and_nothing_is_written_beside_it(three, tmp_path):
    shutil.copytree(three.path(5), tmp_path / "elsewhere" / "copy")
    assert verification(tmp_path / "elsewhere" / "copy")[1]
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["copy"]


def test_what_cannot_be_remembered_is_said_and_the_verification_counts(three, monkeypatch):
    monkeypatch.setattr(files, "append_lines", lambda *_: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
    text, all_sound = verification(three.folder)
    assert all_sound and text.count("(not remembered: Read-only file system)") == 3


def test_a_checkpoint_that_is_pruned_while_it_is_verified_is_no_damage(three, monkeypatch):
    def gone(path):
        shutil.rmtree(path)
        return ["it has no manifest"]

    monkeypatch.setattr("trainer.checkpoint.inspect.listing.verify", gone)
    assert verification(three.folder) == ("\n".join(f"step-{n:08d}: was removed meanwhile" for n in (15, 10, 5)), True)


def test_an_epoch_a_pin_and_every_n_steps_are_told(store):
    for step, epoch, pinned in ((5, None, True), (7, 1, False), (10, None, False), (12, None, False)):
        staging = store.begin(step)
        write_files(staging, step)
        settings = "{keep_last: 1, keep_best: 0, keep_every_steps: 10, keep_epochs: 1}\nsafety: {rollback: {max: 0}}"
        (staging / "config.yaml").write_text(CONFIG.replace("{keep_last: 2, keep_best: 1}", settings))
        store.commit(staging, manifest_of(step, files=describe_files(staging), epoch=epoch, pinned=pinned))
    lines = listing(store.folder).splitlines()[2:]
    for line, words in zip(lines, ("latest, rolling", "every", "epoch 1", "pinned"), strict=True):
        assert f"  {words}  " in line
    assert kept_as(store.entry(store.path(7))) == ["epoch"]


def test_a_listing_works_though_the_settings_cannot_be_read_and_says_so(three):
    staging = three.begin(20)
    write_files(staging, 20)
    (staging / "config.yaml").write_text(CONFIG + "later_setting: 1\n")
    three.commit(staging, manifest_of(20, files=describe_files(staging)))
    text = listing(three.folder)
    assert "20" in text and "why each is kept is not known: " in text and "later_setting" in text
    with pytest.raises(ConfigError, match="later_setting"):
        pruning(three.folder, dry_run=True)


# Pruning


@pytest.fixture
def six(store):
    for step in range(1, 7):
        commit(store, step, val_loss=float(step))
    return store


def test_a_dry_run_says_what_would_go_and_why_and_removes_nothing(six):
    text = pruning(six.folder, dry_run=True)
    assert text.splitlines()[0].startswith(f"{six.folder}: 3 would go, ")
    assert [line.split()[0] for line in text.splitlines()[2:]] == [f"step-{n:08d}" for n in (2, 3, 4)]
    assert text.count("no tier keeps it") == 3 and len(six.entries()) == 6


def test_pruning_removes_what_the_dry_run_said(six):
    said = pruning(six.folder, dry_run=True).splitlines()[1:]
    assert pruning(six.folder, dry_run=False).splitlines()[1:] == said
    assert [entry.step for entry in six.entries()] == [6, 5, 1]
    assert pruning(six.folder, dry_run=False) == f"{six.folder}: nothing to remove"


def test_rules_of_the_command_line_take_the_place_of_the_settings_this_once(six):
    before = [entry.step for entry in six.entries()]
    pruning(six.folder, dry_run=True, rules={"keep_last": 1})
    assert [entry.step for entry in six.entries()] == before
    pruning(six.folder, dry_run=False, rules={"keep_last": 1, "keep_best": 0, "keep_every_steps": None})
    assert [entry.step for entry in six.entries()] == before[:1]


def test_nothing_is_pruned_while_another_process_writes_there(six):
    with locks.take(six.folder / ".lock"):
        with refuses(CheckpointError, "another process", "wait"):
            pruning(six.folder, dry_run=False)
        assert "3 would go" in pruning(six.folder, dry_run=True)
    assert len(six.entries()) == 6
    assert "3 removed" in pruning(six.folder, dry_run=False), "the lock is free again"


def test_a_bound_that_cannot_hold_is_told(six):
    one = folder_bytes(six.path(6))
    staging = six.begin(7)
    write_files(staging, 7)
    (staging / "config.yaml").write_text(CONFIG.replace("keep_best: 1}", f"keep_best: 1, max_disk_bytes: {one}}}"))
    six.commit(staging, manifest_of(7, files=describe_files(staging)))
    text = pruning(six.folder, dry_run=False)
    assert "max_disk_bytes: " in text and "are needed" in text.splitlines()[-1]
    assert [entry.step for entry in six.entries()] == [7, 1]


def test_pruning_is_of_a_whole_run_and_needs_a_whole_checkpoint(six):
    with refuses(CheckpointError, "step-00000003", "run"):
        pruning(six.path(3), dry_run=True)
    for entry in six.entries():
        (entry.path / "optimizer.bin").unlink()
    with refuses(CheckpointError, str(six.folder)):
        pruning(six.folder, dry_run=False)


def test_a_disk_that_refuses_is_told_in_a_sentence(six, monkeypatch):
    monkeypatch.setattr(files, "move_folder", lambda *_: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
    with pytest.raises(
        CheckpointError, match="could not be pruned .*Read-only file system.*; fix that and prune again"
    ):
        pruning(six.folder, dry_run=False)


def test_a_folder_without_checkpoints_is_refused(tmp_path):
    for look in (listing, verification):
        with refuses(CheckpointError, str(tmp_path)):
            look(tmp_path)


def test_pruning_by_hand_counts_on_no_checkpoint_that_is_damaged(store):
    for step in (5, 10, 15):
        commit(store, step)
    flip(store.path(15) / "optimizer.bin")
    assert "step-00000010" not in pruning(store.folder, dry_run=True, rules={"keep_last": 1})
    pruning(store.folder, dry_run=False, rules={"keep_last": 1, "keep_best": 0})
    assert [entry.step for entry in store.entries()] == [15, 10], (
        "the damaged one is left alone, and the newest that is sound stays"
    )
