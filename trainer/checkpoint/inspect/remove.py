"""One checkpoint removed by hand: never one that is pinned, nor the last that a run could go on from, nor while the run is trained."""

from pathlib import Path

from trainer import files
from trainer.checkpoint.format.manifest import MANIFEST
from trainer.checkpoint.format.store import CheckpointStore, folder_bytes, verify
from trainer.checkpoint.resume.lock import lock_checkpoints
from trainer.checkpoint.resume.lookup import one_of
from trainer.config.folders import command_line, folder_of_run
from trainer.errors import CheckpointError
from trainer.journal import JOURNAL, Journal
from trainer.text import size


def remove(folder: Path, wanted: str) -> str:
    """Removes the checkpoint that `wanted` names (a step, latest, best, or the name of one that was set aside); says what went.

    raises  CheckpointError when it is not there, must stay, cannot be removed, or a process writes there
    """
    if (folder / MANIFEST).is_file():
        raise CheckpointError(f"{folder} is one checkpoint; name its run, and which one with --checkpoint")
    if not folder.is_dir():
        raise CheckpointError(f"{folder} holds no checkpoints, so there is none to remove")
    store = CheckpointStore(folder)
    with lock_checkpoints(folder):
        path = _chosen(store, wanted)
        _check(store, path)
        run, num_bytes = folder_of_run(path), folder_bytes(path)
        try:
            files.remove_folder(path)
            store.point_links()
        except OSError as error:
            raise CheckpointError(f"{path} could not be removed ({error}); fix that and try again") from None
    if run is not None and (run / JOURNAL).is_file():
        Journal(run).write("remove", name=path.name, bytes=num_bytes)
    return f"{path} is removed: {size(num_bytes)}"


def _chosen(store: CheckpointStore, wanted: str) -> Path:
    aside = {path.name: path for path in store.set_aside_folders()}
    if wanted in aside:
        return aside[wanted]
    if wanted.isdecimal() and store.path(int(wanted)).is_dir():
        return store.path(int(wanted))  # one that is damaged, too
    path = one_of(store.folder, wanted).path
    if path.resolve().parent != store.folder.resolve():
        raise CheckpointError(f"{path} is not among the checkpoints in {store.folder}; name the run that it belongs to")
    return path


def _check(store: CheckpointStore, path: Path) -> None:
    """Refuses to remove what is to stay; reads every byte of it and of the newest other one that is sound."""
    entry = store.entry(path)
    if entry.manifest and entry.manifest.pinned:
        raise CheckpointError(
            f"{path} is pinned, so it stays; take the pin away first: "
            f"{command_line('checkpoints', 'unpin', str(path.parent), '--checkpoint', str(entry.step))}"
        )
    others = [other for other in store.entries() if other.path != path]
    if len(others) == len(store.entries()) or verify(path):  # set aside, or damaged: no run goes on from it
        return
    if not any(not other.problem and not verify(other.path) for other in others):
        raise CheckpointError(
            f"{path} is the last whole checkpoint, and the run could not go on without it; remove the whole run: "
            f"{command_line('runs', 'rm', path.parent.name)}"
        )
