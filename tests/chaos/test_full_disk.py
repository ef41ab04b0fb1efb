"""A disk that somebody else fills, and frees again: the run survives it, recovers, and always has a checkpoint."""

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.chaos.aimed import FULL, Aim, arm
from tests.launching import Started, outcome, steps, write_recipe
from tests.messages import says
from trainer.checkpoint.format.store import CheckpointStore
from trainer.checkpoint.resume.select import resolve
from trainer.journal import read_events

MAX_STEPS = 300


@dataclass
class Disk:
    """Where checkpoints go, and how it becomes full and has room again."""

    folder: Path
    fill: Callable[[], None]
    free: Callable[[], None]


@pytest.fixture(params=[pytest.param("tmpfs", marks=pytest.mark.long), "injected"])
def disk(request, tmp_path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if request.param == "injected":
        full = tmp_path / FULL
        yield Disk(folder, full.touch, full.unlink)
        return
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    yield Disk(folder, partial(fill, folder / "somebody"), (folder / "somebody").unlink)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(path: Path) -> None:
    """Writes until nothing more goes in; what the run gives back meanwhile is filled too."""
    with open(path, "ab", buffering=0) as file:
        for _ in range(3):
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                time.sleep(0.02)


class Watch(threading.Thread):
    """Notes whether there was ever a moment without a checkpoint after the first."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder, self.had_one, self.empty_moments = folder, False, 0
        self.is_over = threading.Event()

    def run(self) -> None:
        while not self.is_over.wait(0.002):
            names = os.listdir(self.folder) if self.folder.exists() else []
            has_one = any(name.startswith("step-") for name in names)
            self.empty_moments += self.had_one and not has_one
            self.had_one = self.had_one or has_one


def seen(folder: Path, event: str) -> int:
    return sum(each["event"] == event for each in read_events(folder))


def wait_for_another(folder: Path, event: str, run: Started) -> None:
    before, until = seen(folder, event), time.monotonic() + 60
    while seen(folder, event) == before:
        assert run.running and time.monotonic() < until, run.text()
        time.sleep(0.01)


def test_a_run_whose_disk_is_filled_and_freed_three_times_finishes_and_always_has_a_checkpoint(disk, tmp_path):
    recipe = write_recipe(
        tmp_path,
        max_steps=MAX_STEPS,
        checkpoints_folder=str(disk.folder),
        metrics={"trackers": [], "console_every_steps": 1000},
        checkpoint={"every_steps": 4, "keep_last": 2, "max_failures": 10_000},
        evaluation={"every_steps": 40},
    )
    store, journal = CheckpointStore(disk.folder / "tiny"), tmp_path / "runs" / "tiny"
    watch = Watch(store.folder)
    watch.start()
    run = Started(recipe, (), 1, partial(arm, Aim(str(tmp_path), "full")))
    for _ in range(3):
        wait_for_another(journal, "save", run)
        disk.fill()
        wait_for_another(journal, "save_failed", run)
        assert resolve(store, "latest").manifest is not None, "every byte of it is right"
        disk.free()
        wait_for_another(journal, "save", run)
    assert run.wait() == 0, run.text()
    watch.is_over.set()
    watch.join()
    assert outcome(recipe)["outcome"] == "finished"
    assert len(steps(recipe)) == MAX_STEPS
    assert resolve(store, "latest").manifest.step == MAX_STEPS
    assert watch.had_one
    assert watch.empty_moments == 0
    says(run.text(), "next save")
    assert not list(store.folder.glob(".staging-*"))
