"""A save that training waits for: `Accelerator.save_state` and the commit, one after the other.

    all ranks   Accelerator.save_state(.staging-N)      model, optimizer, registered state; each rank its random streams
    all ranks   random_states_R.json                    the same streams as JSON, which is what our own resume reads
    rank 0      digests, manifest, fsync, rename        the commit

For a machine whose memory has no room for a snapshot, and the reference for one that has: both ways load to the same bits.
"""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors import SafetensorError

from trainer import files
from trainer.checkpoint.format import random_states
from trainer.checkpoint.format.manifest import Manifest, describe_files, manifest_digest
from trainer.checkpoint.format.retention import Policy
from trainer.checkpoint.format.store import CheckpointStore
from trainer.checkpoint.mirror.worker import Copier
from trainer.checkpoint.ranks import Ranks, say
from trainer.checkpoint.save.writer_client import Done, tell_note
from trainer.journal import Journal

WRITE_FAILURES = (OSError, RuntimeError, SafetensorError)
"""What a full or broken disk raises: the system itself, torch.save, safetensors."""


def plain_save(
    accelerator: Accelerator,
    ranks: Ranks,
    store: CheckpointStore,
    manifest: Manifest,
    config_text: str,
    before_commit: Callable[[], None],
) -> str | None:
    """Commits a checkpoint of this moment, on every rank; returns why it failed, on every rank, None when it did not.

    manifest       all but the digests of the files
    before_commit  makes metrics durable up to the saved step
    """
    staging = store.staging(manifest.step)
    failure = ranks.first_failure(_begin(store, manifest.step) if ranks.is_main else None)
    failure = failure or ranks.first_failure(_write(accelerator, ranks, staging))
    if not failure:
        failure = ranks.first_failure(
            _commit(store, staging, manifest, config_text, before_commit) if ranks.is_main else None
        )
    return failure


def _begin(store: CheckpointStore, step: int) -> str | None:
    try:
        store.begin(step)
    except OSError as error:
        return say(error)
    return None


def _write(accelerator: Accelerator, ranks: Ranks, staging: Path) -> str | None:
    """This rank's files; the text of the failure where there is one, since a rank that raised alone would leave the others waiting."""
    try:
        accelerator.save_state(str(staging))
        streams = random_states.capture(accelerator.device)
        (staging / f"random_states_{ranks.number}.json").write_text(json.dumps(streams), encoding="utf-8")
    except WRITE_FAILURES as error:
        return say(error)
    return None


def _commit(
    store: CheckpointStore, staging: Path, manifest: Manifest, config_text: str, before_commit: Callable[[], None]
) -> str | None:
    try:
        (staging / "config.yaml").write_text(config_text, encoding="utf-8")
        files.follow_umask(staging)  # safetensors makes its file readable by the owner alone
        before_commit()
        store.commit(staging, replace(manifest, files=describe_files(staging)))
    except WRITE_FAILURES as error:
        return say(error)
    return None


class PlainSaves:
    """Saves of one run that training waits for, with all that a writer does after a save of its own."""

    def __init__(
        self,
        accelerator: Accelerator,
        ranks: Ranks,
        store: CheckpointStore,
        policy: Policy,
        config_text: str,
        before_commit: Callable[[], None],
        *,
        run_folder: Path,
        mark: Path,
        second_place: dict[str, Any] | None,
    ) -> None:
        """
        mark          the file that says that there was a save
        second_place  where copies go, for a Copier; None for nowhere
        """
        self._accelerator, self._ranks, self._store, self._policy = accelerator, ranks, store, policy
        self._config_text, self._before_commit, self._mark = config_text, before_commit, mark
        self._journal, self._second_place = Journal(run_folder), second_place
        self._copier: Copier | None = None

    def save(self, manifest: Manifest) -> Done:
        """Saves this moment, on every rank; what came of it, of which the figures are rank 0's."""
        started, step = time.perf_counter(), manifest.step
        failure = plain_save(
            self._accelerator, self._ranks, self._store, manifest, self._config_text, self._before_commit
        )
        if not self._ranks.is_main:
            return Done(step, manifest.reason, failure)
        if self._second_place and self._copier is None:
            self._copier = Copier(self._second_place, self._journal, tell_note, lambda: None)
        if failure:
            self._journal.write("save_failed", step=step, reason=manifest.reason, failure=failure)
            return Done(
                step, manifest.reason, failure, untidy=_failures({"what is left of it": lambda: self._forget(step)})
            )
        if self._copier:
            self._copier.offer(self._store.path(step), is_last=manifest.reason == "final")
        num_bytes = self._store.entry(self._store.path(step)).manifest.num_bytes
        self._journal.write(
            "save",
            step=step,
            digest=manifest_digest(self._store.path(step)),
            reason=manifest.reason,
            bytes=num_bytes,
            seconds=round(time.perf_counter() - started, 3),
        )
        untidy = _failures(
            {
                "the mark of a save": self._mark.touch,
                "old checkpoints": lambda: self._prune(num_bytes),
                "the links latest and best": self._store.point_links,
            }
        )
        return Done(step, manifest.reason, None, num_bytes=num_bytes, untidy=untidy)

    def leave_out(self, manifest: Manifest, tensor: str) -> Done:
        """Makes no checkpoint of this moment, because of a tensor that is not finite, and writes that down. On every rank."""
        if self._ranks.is_main:
            self._journal.write("not_saved", step=manifest.step, reason=manifest.reason, tensor=tensor)
        return Done(manifest.step, manifest.reason, None, tensor)

    def end(self, *, wait_for_copies: bool) -> None:
        """Waits for the copies that are under way, if that is wanted."""
        if self._copier and wait_for_copies:
            self._copier.finish()

    def _forget(self, step: int) -> None:
        """Removes what a failed save left: a full disk needs the room."""
        if (staging := self._store.staging(step)).exists():
            files.remove_folder(staging)

    def _prune(self, next_bytes: int) -> None:
        # A bound on bytes goes before a copy elsewhere, which is told that its checkpoint is gone and takes the next.
        held = self._copier.held if self._copier and self._policy.max_disk_bytes is None else ()
        in_flight_bytes = next_bytes + (8 << 10)  # for its manifest besides
        for name, reason in self._store.prune(self._policy, in_flight_bytes=in_flight_bytes, held=held):
            self._journal.write("prune", name=name, reason=reason)


def _failures(works: dict[str, Callable[[], object]]) -> tuple[str, ...]:
    """What failed of what follows a save; every checkpoint is whole without it, and the next save tries again."""
    failures = []
    for what, work in works.items():
        try:
            work()
        except OSError as error:
            failures.append(f"{what}: {say(error)}")
    return tuple(failures)
