import os
from pathlib import Path

import pytest

from tests.messages import logged
from tests.small_checkpoints import NAMES, OUTSIDE, commit, flip, lead_out, manifest_of, write_files
from trainer import files
from trainer.checkpoint.format.manifest import describe_files, read_manifest
from trainer.checkpoint.format.retention import Policy
from trainer.checkpoint.format.store import CheckpointStore, folder_bytes, verify
from trainer.checkpoint.format.verified import remember
from trainer.checkpoint.inspect.pin import set_pinned
from trainer.errors import CheckpointError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def steps(store):
    return [entry.step for entry in store.entries()]


def test_a_run_without_a_folder_has_no_checkpoints(store):
    assert store.entries() == [] and store.sweep() == [] and store.num_bytes() == 0
    store.point_links()


def test_checkpoints_are_listed_from_the_newest(store):
    for step in (5, 10, 100_000_000, 15):
        commit(store, step)
    assert steps(store) == [100_000_000, 15, 10, 5]
    assert [entry.problem for entry in store.entries()] == [None] * 4
    assert store.entries()[-1].path.name == "step-00000005"


def test_a_copy_under_another_name_is_no_checkpoint_of_the_run(store):
    commit(store, 5)
    for copy in ("step-5", "step-00000005.bak", "step-old", "step-\u00b2", "step-"):
        (store.folder / copy).mkdir()
    (store.folder / "step-00000006").write_text("a file")
    assert steps(store) == [5]
    store.prune(Policy(1, 0))


def test_a_copied_checkpoint_is_sound_under_its_new_name(store, tmp_path):
    commit(store, 5).rename(tmp_path / "copy")
    entry = store.entry(tmp_path / "copy")
    assert entry.problem is None and entry.step == 5
    assert verify(tmp_path / "copy") == []


def test_a_checkpoint_under_the_name_of_another_step_is_refused(store):
    commit(store, 5).rename(store.path(6))
    assert store.entries()[0].problem == "its manifest is of step 5, not 6"
    assert verify(store.path(6)) == ["its manifest is of step 5, not 6"]


def test_what_is_staged_is_not_a_checkpoint(store):
    staging = store.begin(5)
    write_files(staging, 5)
    assert steps(store) == [] and staging.name == ".staging-00000005"


def test_staging_begins_empty(store):
    write_files(store.begin(5), 5)
    assert names(store.begin(5)) == []


def test_a_sound_checkpoint_is_never_replaced(store):
    first = commit(store, 5, reason="periodic")
    before = first.stat().st_ino
    assert commit(store, 5, reason="final") == first
    assert first.stat().st_ino == before and read_manifest(first).reason == "periodic"
    assert names(store.folder) == ["step-00000005"]


def test_a_damaged_checkpoint_is_set_aside_for_a_new_one(store, caplog):
    flip(commit(store, 5) / "optimizer.bin")
    assert verify(commit(store, 5)) == []
    assert names(store.folder) == [".damaged-step-00000005", "step-00000005"]
    logged(caplog, "step-00000005", ".damaged-step-00000005")


def test_the_manifest_is_written_last_and_describes_every_file(store):
    path = commit(store, 5)
    assert sorted(read_manifest(path).files) == sorted(NAMES)
    assert describe_files(path) == read_manifest(path).files


def test_pruning_keeps_the_last_and_the_best(store):
    for step in range(1, 7):
        commit(store, step, val_loss=float(abs(step - 2)))
    assert store.prune(Policy(2, 1)) == [(f"step-{n:08d}", "no tier keeps it") for n in (1, 3, 4)]
    assert steps(store) == [6, 5, 2]
    assert store.prune(Policy(2, 1)) == []


def test_pruning_spares_the_damaged(store):
    for step in (1, 2, 3, 4):
        commit(store, step)
    (store.path(1) / "optimizer.bin").unlink()
    assert [name for name, _ in store.prune(Policy(1, 0))] == ["step-00000002", "step-00000003"]
    assert steps(store) == [4, 1]


def test_a_checkpoint_that_a_verification_found_damaged_protects_nothing_and_is_spared(store):
    for step in (1, 2, 3):
        commit(store, step)
    remember(store.folder, read_manifest(store.path(3)), ["optimizer.bin is damaged"])
    assert [name for name, _ in store.prune(Policy(1, 0))] == ["step-00000001"]
    assert steps(store) == [3, 2], "the newest sound one is the one before"


def test_what_is_pinned_or_held_stays(store):
    for step in (1, 2, 3, 4):
        commit(store, step, pinned=step == 1)
    assert [name for name, _ in store.prune(Policy(1, 0), held={"step-00000002"})] == ["step-00000003"]
    assert steps(store) == [4, 2, 1]


def test_a_bound_holds_with_one_more_and_the_reasons_are_told(store):
    for step in range(1, 7):
        commit(store, step)
    for name in (".damaged-step-00000009", ".abandoned-step-00000007", ".abandoned-step-00000008"):
        commit(store, int(name[-1]), pinned=name.endswith("8")).rename(store.folder / name)
    one = folder_bytes(store.path(6))
    going = store.prune(Policy(4, 0, max_disk_bytes=4 * one + 100))
    assert [name for name, _ in going] == [
        "step-00000001",
        "step-00000002",
        ".damaged-step-00000009",
        ".abandoned-step-00000007",
        "step-00000003",
        "step-00000004",
    ]
    assert going[-1][1].startswith("max_disk_bytes: ")
    assert store.num_bytes() + one <= 4 * one + 100 and (store.folder / ".abandoned-step-00000008").is_dir()
    assert store.shortage(Policy(4, 0, max_disk_bytes=4 * one + 100)) is None
    assert "are needed" in store.shortage(Policy(4, 0, max_disk_bytes=2 * one))
    assert "are needed" in store.shortage(Policy(4, 0, max_disk_bytes=4 * one + 100), in_flight_bytes=3 * one)


def test_folders_set_aside_come_the_least_worth_keeping_first(store):
    names = [
        ".damaged-step-00000010",
        ".damaged-step-00000010-2",
        ".damaged-step-00000011",
        ".diverged-step-00000003",
        ".abandoned-step-00000002",
        ".abandoned-step-00000010",
        ".abandoned-step-00000010-10",
    ]
    for name in reversed(names):
        (store.folder / name).mkdir(parents=True)
    (store.folder / ".removing-step-00000001").mkdir()
    (store.folder / ".damaged-step-00000012").write_text("a file")
    assert [path.name for path in store.set_aside_folders()] == names


def test_a_pin_that_comes_while_a_checkpoint_is_removed_keeps_it(store, monkeypatch):
    """The pin is set after pruning has read the manifests, at the last instant before the folder loses its name."""
    for step in (1, 2, 3):
        commit(store, step)
    move = files.move_folder

    def pinned_just_before(source, target):
        monkeypatch.setattr(files, "move_folder", move)
        set_pinned(store.folder, "1", pinned=True)
        move(source, target)

    monkeypatch.setattr(files, "move_folder", pinned_just_before)
    assert [name for name, _ in store.prune(Policy(1, 0))] == ["step-00000002"]
    assert steps(store) == [3, 1] and verify(store.path(1)) == [] and read_manifest(store.path(1)).pinned


def test_a_pinned_one_that_a_crash_left_without_its_name_gets_it_back_and_other_leftovers_go(store):
    commit(store, 1, pinned=True).rename(store.folder / ".removing-step-00000001")
    commit(store, 2).rename(store.folder / ".removing-step-00000002")
    commit(store, 3)
    assert store.sweep() == [".removing-step-00000002"] and steps(store) == [3, 1]
    store.path(1).rename(store.folder / ".removing-step-00000001")
    commit(store, 4).rename(store.folder / ".removing-step-00000004")
    assert store.prune(Policy(9, 0)) == [] and steps(store) == [3, 1]
    assert [name for name in names(store.folder) if name.startswith(".")] == []


def test_a_checkpoint_taken_over_from_elsewhere_is_not_pinned(store, tmp_path):
    path = commit(CheckpointStore(tmp_path / "other"), 3, pinned=True)
    assert not read_manifest(store.adopt(path, read_manifest(path))).pinned


def test_links_lead_people_to_the_newest_and_the_best(store):
    commit(store, 1, val_loss=1.0)
    commit(store, 2, val_loss=2.0)
    store.point_links()
    assert os.readlink(store.folder / "latest") == "step-00000002"
    assert os.readlink(store.folder / "best") == "step-00000001"
    assert steps(store) == [2, 1]


def test_leftovers_are_swept_and_what_was_set_aside_stays(store):
    commit(store, 1)
    for name in (".staging-00000002", ".removing-step-00000000", ".damaged-step-00000003", ".abandoned-step-00000004"):
        (store.folder / name).mkdir()
        (store.folder / name / "x").write_text("x")
    (store.folder / ".latest.partial-77").symlink_to("step-00000001")
    assert store.sweep() == [".latest.partial-77", ".removing-step-00000000", ".staging-00000002"]
    assert names(store.folder) == [".abandoned-step-00000004", ".damaged-step-00000003", "step-00000001"]


def test_the_bytes_of_the_folder_are_those_of_its_files(store):
    path = commit(store, 1)
    store.point_links()
    assert store.num_bytes() == sum(file.stat().st_size for file in path.iterdir())


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda path: flip(path / "optimizer.bin", 5), "optimizer.bin is damaged: its bytes do not match their digest"),
        (lambda path: (path / "optimizer.bin").write_bytes(b"short"), "optimizer.bin has 5 bytes, expected"),
        (lambda path: (path / "optimizer.bin").unlink(), "optimizer.bin is missing"),
        (lambda path: (path / "extra").write_text("x"), "extra does not belong to it"),
        (lambda path: (path / "manifest.json").unlink(), "has no manifest.json"),
        (lambda path: flip(path / "manifest.json", 9), "manifest.json"),
    ],
)
def test_what_is_wrong_with_a_checkpoint_is_said(store, harm, words):
    path = commit(store, 5)
    assert verify(path) == []
    harm(path)
    (problem,) = verify(path)
    assert words in problem


def test_a_file_that_the_disk_cannot_read_is_a_problem_and_no_crash(store, monkeypatch):
    path = commit(store, 5)

    def broken(*_arguments):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("trainer.checkpoint.format.manifest.digest_file", broken)
    assert "optimizer.bin cannot be read: Input/output error" in verify(path)
    monkeypatch.undo()
    monkeypatch.setattr(Path, "is_file", broken)
    assert "Input/output error" in verify(path)[0] and "Input/output error" in store.entry(path).problem


def test_two_stores_of_one_folder_agree(store):
    commit(store, 1)
    assert CheckpointStore(store.folder).entries() == store.entries()
    assert store.sound_manifests() == [manifest_of(1, files=describe_files(store.path(1)))]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_file_that_leads_out_of_its_folder_is_not_adopted(store, tmp_path, name):
    elsewhere = CheckpointStore(tmp_path / "elsewhere" / "run")
    path = commit(elsewhere, 5)
    lead_out(path, name)
    with pytest.raises(CheckpointError) as refused:
        store.adopt(path, read_manifest(path))
    assert repr(name) in str(refused.value)
    assert store.entries() == []
    assert not list(store.folder.rglob("escaped"))
