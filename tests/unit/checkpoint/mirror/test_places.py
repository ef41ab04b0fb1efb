import json
import shutil
from pathlib import Path

import fsspec
import pytest
import xxhash

from tests.messages import refuses
from tests.small_checkpoints import NAMES, commit, flip
from trainer import files
from trainer.checkpoint.format.manifest import MANIFEST
from trainer.checkpoint.format.store import CheckpointStore, verify
from trainer.checkpoint.format.verified_copy import Pace
from trainer.checkpoint.mirror import transfer
from trainer.checkpoint.mirror.places import RemotePlace, open_place, place_of_run
from trainer.checkpoint.mirror.transfer import copy_checkpoint, fetch_checkpoint, look_at, too_many
from trainer.checkpoint.resume.select import resolve
from trainer.errors import CheckpointError

MEMORY = fsspec.filesystem("memory")


@pytest.fixture(params=["path", "file", "memory"])
def where(request, tmp_path):
    """A second place of each kind."""
    if request.param == "memory":
        yield "memory://bucket/run"
        MEMORY.store.clear()
        MEMORY.pseudo_dirs[:] = [""]
    else:
        yield f"{'file://' if request.param == 'file' else ''}{tmp_path / 'second' / 'run'}"


@pytest.fixture
def memory():
    yield "memory://bucket/run"
    MEMORY.store.clear()
    MEMORY.pseudo_dirs[:] = [""]


def content(where, step):
    """The files of a checkpoint in a second place, by name."""
    system, root = fsspec.core.url_to_fs(where)
    folder = f"{root}/step-{step:08d}"
    return {path.removeprefix(f"{folder}/").lstrip("/"): system.cat_file(path) for path in system.find(folder)}


def local_content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def steps_at(where):
    return [manifest.step for manifest in look_at(where)[0]]


def test_a_copy_has_the_same_files_to_the_byte(store, where):
    checkpoint = commit(store, 5)
    copied = copy_checkpoint(checkpoint, where, keep=3)
    assert content(where, 5) == local_content(checkpoint) and steps_at(where) == [5]
    assert (copied.step, copied.where, copied.removed) == (5, where, [])
    assert copied.num_bytes == sum(map(len, local_content(checkpoint).values())) and copied.seconds >= 0


def test_the_newest_are_kept_there(store, where):
    removed = [copy_checkpoint(commit(store, step), where, keep=2).removed for step in (5, 10, 15, 20)]
    assert steps_at(where) == [20, 15] and removed == [[], [], [5], [10]]


def test_the_same_checkpoint_is_not_copied_twice(store, where):
    checkpoint = commit(store, 5)
    copy_checkpoint(checkpoint, where, keep=3)
    assert copy_checkpoint(checkpoint, where, keep=3).num_bytes == 0


def test_a_checkpoint_that_another_branch_wrote_takes_the_place_of_the_first(store, where):
    copy_checkpoint(commit(store, 5), where, keep=3)
    shutil.rmtree(store.folder)
    checkpoint = commit(store, 5, loss=9.0)
    assert copy_checkpoint(checkpoint, where, keep=3).num_bytes > 0
    assert content(where, 5) == local_content(checkpoint)


def test_after_going_back_the_branch_that_was_left_goes_first(store, where):
    for step in (5, 10, 15):
        copy_checkpoint(commit(store, step), where, keep=3)
    for step, there in ((7, [10, 7, 5]), (8, [8, 7, 5]), (9, [9, 8, 7])):
        copy_checkpoint(commit(store, step), where, keep=3)
        assert steps_at(where) == there


def test_the_manifest_is_written_last(store, where, monkeypatch):
    checkpoint = commit(store, 5)
    place, order = open_place(where), []
    real_write, real_commit = place.write, place.commit
    monkeypatch.setattr(place, "write", lambda path: (order.append(Path(path).name), real_write(path))[1])
    monkeypatch.setattr(place, "commit", lambda *words: (order.append("commit"), real_commit(*words)))
    monkeypatch.setattr(transfer, "open_place", lambda _: place)
    copy_checkpoint(checkpoint, where, keep=3)
    assert order == [*sorted(NAMES), "commit"]


@pytest.mark.parametrize("num_blocks", range(2 * len(NAMES)))
def test_an_interrupted_copy_is_not_there_and_the_next_one_does_it_again(store, where, num_blocks):
    copy_checkpoint(commit(store, 5), where, keep=3)
    checkpoint, left = commit(store, 10), [num_blocks]

    def stop_after():
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy_checkpoint(checkpoint, where, keep=3, pace=Pace(None, between_blocks=stop_after))
    assert steps_at(where) == [5]
    copy_checkpoint(commit(store, 15), where, keep=3)
    assert steps_at(where) == [15, 5] and content(where, 10) == {}, "what was left of it is removed"
    copy_checkpoint(checkpoint, where, keep=9)
    assert content(where, 10) == local_content(checkpoint)


def test_a_damaged_checkpoint_is_not_spread(store, where):
    checkpoint = commit(store, 5)
    flip(checkpoint / "optimizer.bin", 3)
    with refuses(CheckpointError, "step-00000005/optimizer.bin", "damaged") as caught:
        copy_checkpoint(checkpoint, where, keep=3)
    assert "could not be copied" not in str(caught.value), "one sentence says it"
    assert steps_at(where) == []


def test_a_file_that_reads_back_otherwise_is_not_committed(store, where, monkeypatch):
    checkpoint = commit(store, 5)
    place = open_place(where)
    real_read = place.read

    def rotten(path):
        with place.write(path) as file:
            file.write(b"rot")
        return real_read(path)

    monkeypatch.setattr(place, "read", rotten)
    monkeypatch.setattr(transfer, "open_place", lambda _: place)
    with refuses(CheckpointError, "copy", "config.yaml", "damaged"):
        copy_checkpoint(checkpoint, where, keep=3)
    monkeypatch.undo()
    assert steps_at(where) == []


def test_the_folder_of_the_checkpoints_themselves_is_no_second_place(store):
    checkpoint = commit(store, 5)
    writing = store.begin(10)
    for where in (str(store.folder), f"file://{store.folder}/../{store.folder.name}"):
        with refuses(CheckpointError, "checkpoint.mirror", str(store.folder)):
            copy_checkpoint(checkpoint, where, keep=1)
    assert writing.is_dir() and verify(checkpoint) == []


def test_a_folder_that_was_never_committed_is_not_copied(store, where):
    with refuses(CheckpointError, where, "FileNotFoundError"):
        copy_checkpoint(store.begin(5), where, keep=3)


def test_a_place_that_fails_raises_one_kind_of_error(store, where, monkeypatch):
    class Throttled(Exception):
        """As object stores have: no OSError."""

    checkpoint, place = commit(store, 5), open_place(where)
    monkeypatch.setattr(transfer, "open_place", lambda _: place)
    for method in ("sweep", "steps", "begin", "write", "read", "flushed", "commit"):
        with monkeypatch.context() as patch:
            patch.setattr(place, method, lambda *_: (_ for _ in ()).throw(Throttled("slow down")))
            with refuses(CheckpointError, "Throttled: slow down", "checkpoint.mirror"):
                copy_checkpoint(checkpoint, where, keep=3)
    monkeypatch.undo()
    with refuses(CheckpointError, "nosuch://x"):
        copy_checkpoint(checkpoint, "nosuch://x", keep=3)


def test_what_is_removed_there_has_no_manifest_first(store, memory, monkeypatch):
    copy_checkpoint(commit(store, 5), memory, keep=3)
    monkeypatch.setattr(MEMORY, "rm", lambda *_, **__: (_ for _ in ()).throw(OSError("gone away")))
    with pytest.raises(OSError, match="gone away"):
        RemotePlace(memory).remove(5)
    assert steps_at(memory) == [] and set(content(memory, 5)) == set(NAMES)


def test_a_copy_on_a_disk_is_durable_before_it_has_its_name(store, tmp_path, monkeypatch):
    checkpoint, told = commit(store, 5), []
    for name in ("fsync_open_file", "forget_cached", "commit_folder"):
        real = getattr(files, name)
        monkeypatch.setattr(files, name, lambda *words, name=name, real=real: (told.append(name), real(*words)))
    copy_checkpoint(checkpoint, str(tmp_path / "second"), keep=3)
    assert told == ["fsync_open_file", "forget_cached"] * len(NAMES) + ["commit_folder"]
    assert verify(tmp_path / "second" / "step-00000005") == []


def test_a_run_continues_from_a_copy_on_a_disk_by_its_path(store, tmp_path):
    copy_checkpoint(commit(store, 5), str(tmp_path / "second"), keep=3)
    shutil.rmtree(store.folder)
    path = tmp_path / "second" / "step-00000005"
    assert resolve(store, str(path)).path == path


def test_a_checkpoint_is_fetched_back_verified(store, where, tmp_path):
    originals = {}
    for step in (5, 10):
        checkpoint = commit(store, step)
        copy_checkpoint(checkpoint, where, keep=3)
        originals[step] = local_content(checkpoint)
    for wanted, step in ((None, 10), (5, 5)):
        fetched = fetch_checkpoint(where, tmp_path / "back", wanted)
        assert fetched == tmp_path / "back" / f"step-{step:08d}" and local_content(fetched) == originals[step]
        assert resolve(store, str(fetched)).path == fetched
    with refuses(CheckpointError, "step-00000005"):
        fetch_checkpoint(where, tmp_path / "back", 5)


def test_what_is_not_there_cannot_be_fetched_and_the_steps_that_are_there_are_told(store, where, tmp_path):
    with refuses(CheckpointError, where):
        fetch_checkpoint(where, tmp_path)
    for step in (5, 10):
        copy_checkpoint(commit(store, step), where, keep=3)
    with refuses(CheckpointError, "step 7", where, "10, 5"):
        fetch_checkpoint(where, tmp_path, 7)


def test_what_was_damaged_there_is_not_fetched(store, memory, tmp_path):
    copy_checkpoint(commit(store, 5), memory, keep=3)
    MEMORY.pipe_file("/bucket/run/step-00000005/optimizer.bin", b"rot")
    with refuses(CheckpointError, "optimizer.bin", "damaged"):
        fetch_checkpoint(memory, tmp_path / "back")
    assert CheckpointStore(tmp_path / "back").entries() == []


@pytest.mark.parametrize("name", ["../../escaped", "/escaped", "inner/../../escaped", "a\\b", ""])
def test_a_manifest_that_leads_out_of_its_folder_is_refused(store, memory, tmp_path, name):
    copy_checkpoint(commit(store, 5), memory, keep=3)
    manifest = json.loads(MEMORY.cat_file("/bucket/run/step-00000005/manifest.json"))
    manifest["files"][name] = {"bytes": 1, "xxh3_128": "0"}
    del manifest["digest"]
    manifest["digest"] = xxhash.xxh3_128_hexdigest(json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode())
    MEMORY.pipe_file("/bucket/run/step-00000005/manifest.json", json.dumps(manifest).encode())
    with refuses(CheckpointError, repr(name)):
        fetch_checkpoint(memory, tmp_path / "back")


def test_a_manifest_there_that_is_damaged_is_not_listed_and_its_checkpoint_is_copied_again(store, memory):
    checkpoints = [commit(store, step) for step in (5, 10)]
    for checkpoint in checkpoints:
        copy_checkpoint(checkpoint, memory, keep=3)
    MEMORY.pipe_file("/bucket/run/step-00000010/manifest.json", b"{}")
    MEMORY.pipe_file("/bucket/run/step-7/manifest.json", b"{}")
    MEMORY.pipe_file("/bucket/run/readme", b"x")
    assert steps_at(memory) == [5]
    assert copy_checkpoint(checkpoints[1], memory, keep=3).num_bytes > 0 and steps_at(memory) == [10, 5]


def test_an_empty_place_has_no_checkpoints(where):
    assert look_at(where)[0] == []


def test_runs_share_a_place_by_their_names():
    assert place_of_run("s3://bucket/folder/", "mine") == "s3://bucket/folder/mine"
    assert place_of_run("/mnt/backup", "mine") == "/mnt/backup/mine"


class Time:
    """A clock that only sleeping moves."""

    def __init__(self):
        self.now, self.slept = 0.0, []

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


def test_the_bandwidth_is_kept_for_writing_and_for_reading_back(store, where):
    time = Time()
    checkpoint = commit(store, 5)
    copy_checkpoint(checkpoint, where, keep=3, pace=Pace(100, sleep=time.sleep, clock=lambda: time.now))
    moved = 2 * sum((checkpoint / name).stat().st_size for name in NAMES)
    assert time.now == pytest.approx(moved / 100) and max(time.slept) <= 0.26, "evenly, not all at once"


def test_time_in_which_nothing_went_is_not_made_up_for():
    time = Time()
    pace = Pace(100, sleep=time.sleep, clock=lambda: time.now)
    pace.moved(50)
    time.now += 1000
    pace.moved(50)
    assert time.slept == [0.5, 0.5]
    time.now += 0.1
    pace.moved(10)
    assert time.slept[2:] == [pytest.approx(0.1)]


def test_without_a_bandwidth_nobody_sleeps_and_the_caller_is_asked_between_blocks():
    time, asked = Time(), []
    pace = Pace(None, sleep=time.sleep, clock=lambda: time.now, between_blocks=lambda: asked.append(1))
    pace.moved(10**12)
    assert time.slept == [] and asked == [1] and pace.block_bytes == 8 << 20
    assert Pace(1).block_bytes == 1 and Pace(10**12).block_bytes == 8 << 20


def test_which_are_too_many():
    assert too_many([20, 15, 10, 5], newest=20, keep=2) == [5, 10]
    assert too_many([20, 15, 10, 5], newest=10, keep=2) == [15, 20]
    assert too_many([20, 15, 10, 5], newest=10, keep=3) == [20]
    assert too_many([5], newest=5, keep=0) == [], "the one just copied stays"


def test_the_manifest_file_has_the_same_bytes_there(store, where):
    checkpoint = commit(store, 5)
    copy_checkpoint(checkpoint, where, keep=3)
    assert content(where, 5)[MANIFEST] == (checkpoint / MANIFEST).read_bytes()
