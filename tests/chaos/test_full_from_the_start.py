"""A disk that is full before the first step, from the n-th file operation of a launch on, for every n: one paragraph and exit code 2."""

import builtins
import errno
import io
import json
import os
import shutil
from functools import partial
from pathlib import Path

import pytest

from tests.commands import paragraph
from tests.launching import Started, train, write_recipe
from trainer.config.load import load_resolved

OPERATIONS = "operations.json"


def fill(folder: str, n: int) -> None:
    """In a rank: from the n-th operation in `folder` that takes room on, there is none. What was written before can be read and removed."""
    count, notes = 0, []

    def is_full(path: object, what: str) -> bool:
        nonlocal count
        if not isinstance(path, (str, os.PathLike)) or not os.fspath(path).startswith(folder) or OPERATIONS in os.fspath(path):
            return False
        count += 1
        notes.append(f"{what} {os.fspath(path)}")
        if count == n:
            with real_open(f"{os.path.dirname(folder)}/{OPERATIONS}", "w") as file:
                json.dump(notes[-1], file)
        return count >= n

    def refused(path: object) -> OSError:
        return OSError(errno.ENOSPC, "No space left on device", os.fspath(path))

    real_open, real_os_open, real_write = io.open, os.open, os.write
    descriptors: dict[int, object] = {}

    def open_file(path, mode="r", *arguments, **keywords):
        if set(mode) & set("wax") and is_full(path, f"open {mode}"):
            if not os.path.exists(path):
                raise refused(path)
            return real_open("/dev/full", mode.replace("a", "w").replace("+", ""), *arguments, **{**keywords, "opener": None})
        return real_open(path, mode, *arguments, **keywords)

    def os_open(path, flags, *arguments, **keywords):
        if flags & os.O_CREAT and not os.path.exists(path) and is_full(path, "create"):
            raise refused(path)
        descriptor = real_os_open(path, flags, *arguments, **keywords)
        descriptors[descriptor] = path
        return descriptor

    def write(descriptor, content):
        if is_full(descriptors.get(descriptor), "write"):
            raise refused(descriptors[descriptor])
        return real_write(descriptor, content)

    def failing(real, what):
        def operation(path, *arguments, **keywords):
            if is_full(path, what):
                raise refused(path)
            return real(path, *arguments, **keywords)

        return operation

    builtins.open = io.open = open_file
    os.open, os.write, os.mkdir = os_open, write, failing(os.mkdir, "mkdir")


def struck(folder: Path) -> str | None:
    """The operation that was the first to fail; None when it was not come to."""
    path = folder / OPERATIONS
    return json.loads(path.read_text()) if path.exists() else None


@pytest.mark.slow
@pytest.mark.parametrize("resumed", [False, True], ids=["fresh", "resumed"])
def test_a_disk_that_is_full_before_the_first_step_is_told_in_a_paragraph_and_leaves_nothing_half_made(tmp_path, resumed):
    disk, before, seen = tmp_path / "disk", tmp_path / "before", []
    recipe = write_recipe(
        tmp_path, runs_folder=f"{disk}/runs", checkpoints_folder=f"{disk}/checkpoints", max_steps=6, checkpoint={"asynchronous": False}
    )
    disk.mkdir()
    if resumed:
        train(recipe, "max_steps=4")
    shutil.copytree(disk, before, symlinks=True)
    for n in range(1, 100):
        run = Started(recipe, (), 1, partial(fill, str(disk), n))
        code, text = run.wait(), run.text()
        seen.append(struck(tmp_path))
        if "step 1/6" in text or "step 5/6" in text:
            break
        assert code == 2 and "No space left on device" in paragraph(text), (seen[-1], text)
        leftovers = [path.name for path in disk.rglob("*") if ".partial-" in path.name or path.name.startswith(".staging")]
        assert leftovers == [], seen[-1]
        config = disk / "runs" / "tiny" / "config.yaml"
        assert not config.exists() or load_resolved(config).max_steps in (4, 6), seen[-1]
        if n % 10 == 0:
            assert "finished at step 6" in train(recipe), "once there is room it starts"
        shutil.rmtree(disk)
        shutil.copytree(before, disk, symlinks=True)
        (tmp_path / OPERATIONS).unlink()
    assert n > 12, seen
