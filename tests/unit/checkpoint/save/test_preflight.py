import builtins
import ctypes
import errno
import os
import resource
import subprocess
import sys

import pytest

from tests.messages import says
from trainer.checkpoint.save import preflight as disk
from trainer.checkpoint.save.preflight import (
    preflight,
)
from trainer.errors import CheckpointError

FILES = {"model.safetensors": 3 << 20, "inner/optimizer.bin": 6 << 20, "empty": 0}
ONE = 9 << 20


@pytest.fixture(autouse=True)
def small_trial(monkeypatch):
    monkeypatch.setattr(disk, "TRIAL_BYTES", 3 << 20)


def refusal(folder, **changes):
    with pytest.raises(CheckpointError) as caught:
        preflight(folder, FILES, **{"num_kept": 3, **changes})
    assert list(folder.iterdir()) == [] and "\n" not in str(caught.value)
    return str(caught.value)


def test_a_disk_with_room_is_proved_and_left_as_it_was(tmp_path):
    proved = preflight(tmp_path, FILES, num_kept=3)
    assert (proved.checkpoint_bytes, proved.needed_bytes, proved.is_reserved) == (ONE, 4 * ONE, True)
    assert proved.bytes_per_second > 1e5 and proved.free_bytes > 4 * ONE
    assert "a whole one could be reserved" in proved.sentence and "37.7 MB more are needed" in proved.sentence
    assert list(tmp_path.iterdir()) == []


def test_what_an_earlier_proof_left_is_in_nobodys_way(tmp_path):
    (tmp_path / disk.STAGING).mkdir()
    (tmp_path / disk.STAGING / "trial").write_text("x")
    preflight(tmp_path, FILES, num_kept=1)
    assert list(tmp_path.iterdir()) == []


def test_the_kept_ones_and_one_in_flight_are_compared_with_what_is_free(tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.files.free_bytes", lambda path: 4 * ONE)
    assert preflight(tmp_path, FILES, num_kept=3).needed_bytes == 4 * ONE
    monkeypatch.setattr("trainer.files.free_bytes", lambda path: 4 * ONE - 1)
    text = refusal(tmp_path)
    assert (
        "need 37.7 MB more in" in text and "(3 kept and one being written, 9.44 MB each), and 37.7 MB are free" in text
    )
    assert preflight(tmp_path, FILES, num_kept=3, there_bytes=ONE).needed_bytes == 3 * ONE
    assert preflight(tmp_path, FILES, num_kept=3, there_bytes=99 * ONE).needed_bytes == 0
    assert preflight(tmp_path, FILES, num_kept=3, max_disk_bytes=2 * ONE).needed_bytes == 2 * ONE


def test_a_bound_that_holds_no_two_checkpoints_is_refused(tmp_path):
    assert "checkpoint.max_disk_bytes is 18.9 MB, and the run needs 18.9 MB at least" in refusal(
        tmp_path, max_disk_bytes=2 * ONE - 1
    )


def test_a_limit_on_the_size_of_files_is_met_before_the_first_save(tmp_path):
    script = f"""
import resource
from pathlib import Path
from trainer.checkpoint.save.preflight import preflight
from trainer.errors import CheckpointError
resource.setrlimit(resource.RLIMIT_FSIZE, ({5 << 20}, resource.RLIM_INFINITY))
try:
    preflight(Path({str(tmp_path)!r}), {FILES!r}, num_kept=1)
except CheckpointError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert (
        "inner/optimizer.bin of a checkpoint has 6.29 MB, and this process may write files of 5.24 MB at most" in said
    )
    assert "ulimit -f unlimited" in said and list(tmp_path.iterdir()) == []


def test_a_file_as_large_as_the_limit_is_none_too_many(tmp_path, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (6 << 20, 6 << 20))
    assert preflight(tmp_path, FILES, num_kept=1).is_reserved


def failing(code, at=1):
    """A fallocate that fails with this error number at its n-th call."""
    calls = []

    def fallocate(descriptor, num_bytes):
        calls.append(num_bytes)
        return code if len(calls) == at else 0

    return fallocate


@pytest.mark.parametrize(
    ("code", "words"), [(errno.EDQUOT, "Disk quota exceeded"), (errno.ENOSPC, "No space left on device")]
)
def test_a_quota_that_nobody_told_of_is_met_before_the_first_save(tmp_path, monkeypatch, code, words):
    monkeypatch.setattr(disk, "_fallocate", failing(code, at=2))
    text = refusal(tmp_path)
    assert f"one checkpoint cannot be reserved in {tmp_path}: {words} at inner/optimizer.bin of 6.29 MB" in text


def test_a_file_system_that_holds_no_such_file_is_told_as_that(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "_fallocate", failing(errno.EFBIG))
    assert "model.safetensors of a checkpoint has 3.15 MB, and the file system of" in refusal(tmp_path)


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_a_file_system_without_reservations_is_told_and_gone_on_with(tmp_path, monkeypatch, code):
    monkeypatch.setattr(disk, "_fallocate", failing(code))
    proved = preflight(tmp_path, FILES, num_kept=3)
    assert (
        not proved.is_reserved and "this file system reserves nothing, so a quota shows only later" in proved.sentence
    )


def test_a_reservation_takes_room_and_writes_nothing(tmp_path):
    with open(tmp_path / "a", "wb") as file:
        assert disk._fallocate(file.fileno(), 5 << 20) == 0
        facts = os.fstat(file.fileno())
    assert facts.st_size == 5 << 20 and facts.st_blocks * 512 >= 5 << 20
    assert disk._fallocate(-1, 5) == errno.EBADF


def test_a_system_without_fallocate_reserves_nothing(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    assert disk._fallocate(0, 1) == errno.ENOSYS


def test_a_disk_that_gives_back_other_bytes_is_refused(tmp_path, monkeypatch):
    real_open = builtins.open

    def rotten(path, mode="r", **words):
        if mode == "rb":
            with real_open(path, "r+b") as file:
                file.seek(1 << 20)
                file.write(b"rot")
        return real_open(path, mode, **words)

    monkeypatch.setattr(builtins, "open", rotten)
    says(refusal(tmp_path), "megabyte 2", "checkpoints_folder")


def test_a_disk_that_gives_back_another_place_is_refused(tmp_path, monkeypatch):
    real_forget = disk.files.forget_cached

    def swap(path):
        content = path.read_bytes()
        path.write_bytes(content[1 << 20 : 2 << 20] + content[: 1 << 20] + content[2 << 20 :])
        real_forget(path)

    monkeypatch.setattr("trainer.files.forget_cached", swap)
    says(refusal(tmp_path), "megabyte 1", "checkpoints_folder")


def test_the_trial_waits_for_the_disk_and_reads_from_it(tmp_path, monkeypatch):
    told = []
    for name in ("fsync_open_file", "forget_cached"):
        monkeypatch.setattr(f"trainer.files.{name}", lambda *_, name=name: told.append(name))
    preflight(tmp_path, FILES, num_kept=3)
    assert told == ["fsync_open_file", "forget_cached"]


@pytest.mark.parametrize(
    "error", [OSError(errno.EROFS, "Read-only file system"), PermissionError(errno.EACCES, "Permission denied")]
)
def test_a_disk_that_refuses_is_told_in_a_paragraph(tmp_path, monkeypatch, error):
    monkeypatch.setattr("trainer.files.fsync_open_file", lambda *_: (_ for _ in ()).throw(error))
    assert refusal(tmp_path) == (
        f"{tmp_path} cannot take checkpoints ({error.strerror}); fix that, or set checkpoints_folder to another place"
    )


def test_a_real_small_disk_is_refused_with_figures(tmp_path):
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", tmp_path], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        assert "8.39 MB are free" in refusal(tmp_path)
        assert preflight(tmp_path, {"a": 3 << 20}, num_kept=1).is_reserved
        real_free = disk.files.free_bytes
        with pytest.MonkeyPatch.context() as patch:  # as under a quota: more seems free than can be had
            patch.setattr("trainer.files.free_bytes", lambda path: 100 * real_free(path))
            assert "cannot be reserved" in refusal(tmp_path)
    finally:
        subprocess.run(["umount", tmp_path], check=True)
