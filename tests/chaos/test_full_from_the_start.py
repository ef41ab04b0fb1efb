"""A disk that is full, or may only be read, before the first step, from a launch's n-th operation on, for every n: a paragraph, exit code 2."""

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
from tests.messages import says
from trainer.config.load import load_resolved

OPERATIONS = "operations.json"


def refuse(folder: str, n: int, number: int) -> None:
    """In a rank: from the n-th operation in `folder` that writes on, it is refused with this errno.

    Where it is ENOSPC, only what takes room counts: what was written before can be opened, read and removed.
    """
    count, notes, is_only_full = 0, [], number == errno.ENOSPC

    def is_refused(path: object, what: str) -> bool:
        nonlocal count
        if (
            not isinstance(path, (str, os.PathLike))
            or not os.fspath(path).startswith(folder)
            or OPERATIONS in os.fspath(path)
        ):
            return False
        count += 1
        notes.append(f"{what} {os.fspath(path)}")
        if count == n:
            with real_open(f"{os.path.dirname(folder)}/{OPERATIONS}", "w") as file:
                json.dump(notes[-1], file)
        return count >= n

    def refused(path: object) -> OSError:
        return OSError(number, os.strerror(number), os.fspath(path))

    real_open, real_os_open, real_write = io.open, os.open, os.write
    descriptors: dict[int, object] = {}

    def open_file(path, mode="r", *arguments, **keywords):
        if set(mode) & set("wax") and is_refused(path, f"open {mode}"):
            if not is_only_full or not os.path.exists(path):
                raise refused(path)
            return real_open(
                "/dev/full", mode.replace("a", "w").replace("+", ""), *arguments, **{**keywords, "opener": None}
            )
        return real_open(path, mode, *arguments, **keywords)

    def os_open(path, flags, *arguments, **keywords):
        changes = not os.path.exists(path) if is_only_full else flags & (os.O_WRONLY | os.O_RDWR)
        if flags & os.O_CREAT and changes and is_refused(path, "create"):
            raise refused(path)
        descriptor = real_os_open(path, flags, *arguments, **keywords)
        descriptors[descriptor] = path
        return descriptor

    def write(descriptor, content):
        if is_refused(descriptors.get(descriptor), "write"):
            raise refused(descriptors[descriptor])
        return real_write(descriptor, content)

    def failing(real, what):
        def operation(path, *arguments, **keywords):
            if is_refused(path, what):
                raise refused(path)
            return real(path, *arguments, **keywords)

        return operation

    builtins.open = io.open = open_file
    os.open, os.write, os.mkdir = os_open, write, failing(os.mkdir, "mkdir")
    if not is_only_full:
        os.unlink, os.rmdir, os.replace = (failing(getattr(os, what), what) for what in ("unlink", "rmdir", "replace"))


def struck(folder: Path) -> str | None:
    """The operation that was the first to fail; None when it was not come to."""
    path = folder / OPERATIONS
    return json.loads(path.read_text()) if path.exists() else None


@pytest.mark.parametrize(
    ("number", "resumed", "every"),
    [
        (errno.ENOSPC, False, 5),
        (errno.EACCES, True, 7),
        pytest.param(errno.ENOSPC, False, 1, marks=pytest.mark.long),
        pytest.param(errno.ENOSPC, True, 1, marks=pytest.mark.long),
        pytest.param(errno.EROFS, False, 1, marks=pytest.mark.long),
        pytest.param(errno.EACCES, True, 1, marks=pytest.mark.long),
    ],
    ids=["full-some", "forbidden-resumed-some", "full", "full-resumed", "read-only", "forbidden-resumed"],
)
def test_a_disk_that_takes_nothing_before_the_first_step_is_told_in_a_paragraph_and_leaves_nothing_half_made(
    tmp_path, number, resumed, every
):
    """`every`: 1 for each operation, N for every N-th, from the first."""
    disk, before, seen = tmp_path / "disk", tmp_path / "before", []
    recipe = write_recipe(
        tmp_path,
        runs_folder=f"{disk}/runs",
        checkpoints_folder=f"{disk}/checkpoints",
        max_steps=6,
        checkpoint={"asynchronous": False},
    )
    disk.mkdir()
    if resumed:
        train(recipe, "max_steps=4")
    shutil.copytree(disk, before, symlinks=True)
    for n in range(1, 100, every):
        run = Started(recipe, (), 1, partial(refuse, str(disk), n, number))
        code, text = run.wait(), run.text()
        seen.append(struck(tmp_path))
        if "step 1/6" in text or "step 5/6" in text:
            break
        assert code == 2 and os.strerror(number) in paragraph(text), (seen[-1], text)
        if number == errno.ENOSPC:  # elsewhere nothing can be removed either
            leftovers = [
                path.name for path in disk.rglob("*") if ".partial-" in path.name or path.name.startswith(".staging")
            ]
            assert leftovers == [], seen[-1]
        config = disk / "runs" / "tiny" / "config.yaml"
        assert not config.exists() or load_resolved(config).max_steps in (4, 6), seen[-1]
        if n == 11 or n % 10 == 0:
            says(train(recipe), "finished", "step 6")
        shutil.rmtree(disk)
        shutil.copytree(before, disk, symlinks=True)
        (tmp_path / OPERATIONS).unlink()
    assert n > 12, seen
