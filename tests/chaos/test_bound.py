"""A run that is stopped and started again ten times never takes more bytes of the disk than it was allowed, at any instant."""

import json
import os
import random
import signal
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from tests.chaos.aimed import PLACES, PROCESSES, Aim, arm
from tests.launching import Started, checkpoint, train, wait_for_step, write_recipe
from trainer.checkpoint.format.store import CheckpointStore, folder_bytes, verify

STOPS = ("SIGKILL", "renamed", "SIGTERM", "write", "prune", "SIGKILL")
QUIET = {"metrics": {"trackers": [], "console_every_steps": 1000}, "max_steps": 4000}


class Sampler(threading.Thread):
    """Looks every few milliseconds at how many bytes a folder's files have."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder, self.most_bytes, self.most_held, self.num_samples = folder, 0, "", 0
        self.is_over = threading.Event()

    def run(self) -> None:
        while not self.is_over.wait(0.002):
            seen = dict(self._files())
            total = sum(seen_bytes for seen_bytes, _ in seen.values())
            self.num_samples += 1
            if total > self.most_bytes:
                self.most_bytes = total
                self.most_held = "\n".join(
                    f"{num_bytes:9,} {path}" for num_bytes, path in sorted(seen.values(), key=lambda pair: pair[1])
                )

    def _files(self):
        """Bytes and path by inode: what is renamed between two looks is counted once."""
        for parent, _, names in os.walk(self.folder):
            for name in names:
                with suppress(OSError):
                    facts = os.lstat(os.path.join(parent, name))
                    yield facts.st_ino, (facts.st_size, f"{Path(parent).name}/{name}")


def stopped_somehow(recipe: Path, store: CheckpointStore, stop: str, notes: Path, generator: random.Random) -> None:
    """One launch: killed, or asked to stop, at random; or killed with its writer at one of aimed.py's places, some saves on."""
    notes.mkdir()
    newest = max((entry.step for entry in store.entries()), default=0)
    aim = Aim(str(notes), stop if stop in PLACES else None, generator.randint(3, 6), ("0", "writer"))
    run = Started(recipe, (), 1, partial(arm, aim))
    (notes / PROCESSES).write_text(json.dumps({"0": run.ranks[0].pid}))
    if stop.startswith("SIG"):
        wait_for_step(recipe, newest + generator.randint(10, 40), run)
    if stop == "SIGTERM":
        os.kill(run.ranks[0].pid, signal.SIGTERM)
    elif stop == "SIGKILL":
        run.kill()
    run.wait()


@pytest.mark.parametrize(
    ("is_asynchronous", "restarts"),
    [
        (True, 3),
        (False, 2),
        pytest.param(True, 10, marks=pytest.mark.long),
        pytest.param(False, 4, marks=pytest.mark.long),
    ],
    ids=["background", "plain", "background-long", "plain-long"],
)
def test_restarts_with_random_stops_never_take_more_than_the_bound(tmp_path, is_asynchronous, restarts):
    first = tmp_path / "one"
    first.mkdir()
    measured = write_recipe(first, **{**QUIET, "max_steps": 10})
    train(measured)
    bound = (
        4 * folder_bytes(checkpoint(measured, 10)) + 1000
    )  # which one of whole pages, as they are written, just exceeds

    settings = {
        "every_steps": 4,
        "keep_last": 5,
        "max_disk_bytes": bound,
        "max_overhead_fraction": 1.0,
        "max_lost_work_seconds": 1.0,
    }
    recipe = write_recipe(
        tmp_path, **QUIET, checkpoint={**settings, "asynchronous": is_asynchronous}, evaluation={"every_steps": 12}
    )
    store, generator = CheckpointStore(tmp_path / "checkpoints" / "tiny"), random.Random(7)
    stops = STOPS if is_asynchronous else ("SIGKILL", "SIGTERM")
    sampler = Sampler(store.folder)
    sampler.start()
    for number in range(restarts):
        stopped_somehow(recipe, store, stops[number % len(stops)], tmp_path / f"notes-{number}", generator)
    sampler.is_over.set()
    sampler.join()
    assert sampler.num_samples > 50 * restarts
    assert sampler.most_bytes > 2 * bound / 3
    assert sampler.most_bytes <= bound, f"{sampler.most_bytes:,} bytes, {bound:,} allowed:\n{sampler.most_held}"
    assert store.entries()
    assert all(verify(entry.path) == [] for entry in store.entries())
