"""From a written staging folder to a committed checkpoint, and what follows: one way, in the writer's process and in a save that waits.

begin      room within the bound on bytes, and an empty staging folder
commit     metrics durable, manifest, fsync, rename; then the mirror, the journal, the marker, pruning and the links
fail       no checkpoint: the journal, and what was written is removed
leave_out  the same for weights that are not finite
"""

import errno
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from trainer import files
from trainer.checkpoint.format.carried import carried_bytes, carry
from trainer.checkpoint.format.manifest import Manifest, manifest_digest
from trainer.checkpoint.format.retention import Policy
from trainer.checkpoint.format.store import CheckpointStore
from trainer.checkpoint.mirror.worker import Hook, MirrorSettings, MirrorWorker, Tell
from trainer.journal import Journal
from trainer.text import one_line

MANIFEST_BYTES = 8 << 10
"""Room for the next checkpoint's manifest, where only the bytes of its files are known."""


@dataclass(frozen=True)
class SaveResult:
    """What came of one save."""

    step: int
    reason: str
    failure: str | None = None
    """Why it failed; None: it did not."""
    not_finite: str | None = None
    """The tensor because of which it was not made."""
    num_bytes: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    untidy: tuple[str, ...] = ()
    """What failed after the commit; the checkpoint is whole without it."""


@dataclass(frozen=True)
class CommitPlan:
    """Where checkpoints are committed, and what belongs to a commit."""

    folder: Path
    run_folder: Path
    metrics_file: Path
    """Must be durable up to the saved step before the checkpoint is."""
    marker: Path
    """The file that says that the run has saved."""
    policy: Policy
    mirror: MirrorSettings | None = None

    def to_plain(self) -> dict[str, Any]:
        """As plain values, with absolute paths, for the writer's process."""
        paths = {key: str(value.resolve()) for key, value in vars(self).items() if isinstance(value, Path)}
        return {**asdict(self), **paths}

    @classmethod
    def from_plain(cls, facts: Mapping[str, Any]) -> "CommitPlan":
        paths = {key: Path(facts[key]) for key in ("folder", "run_folder", "metrics_file", "marker")}
        mirror = MirrorSettings(**facts["mirror"]) if facts["mirror"] else None
        return cls(**paths, policy=Policy(**facts["policy"]), mirror=mirror)


@dataclass(frozen=True)
class Began:
    """When a save began, on the clocks that its cost is measured by."""

    seconds: float = field(default_factory=time.monotonic)
    cpu_seconds: float = field(default_factory=time.process_time)

    def spent(self) -> tuple[float, float]:
        """(seconds, CPU seconds of this process) since then."""
        return time.monotonic() - self.seconds, time.process_time() - self.cpu_seconds


class Committer:
    """Commits the checkpoints of one run, in one process."""

    def __init__(
        self, store: CheckpointStore, plan: CommitPlan, before_commit: Hook, tell: Tell, moved: Hook = lambda: None
    ) -> None:
        """`before_commit` makes the metrics durable up to the saved step; `moved` hears of every block that the mirror has copied."""
        self._store, self._plan, self._before_commit = store, plan, before_commit
        self._journal, self._tell, self._moved = Journal(plan.run_folder), tell, moved
        self._mirror: MirrorWorker | None = None
        self._in_flight_bytes: int | None = None

    def begin(self, step: int, num_bytes: int | None = None) -> Path:
        """An empty folder for the files of one checkpoint. raises OSError, also where a bound on bytes has no room for it

        num_bytes  what its own files take at most; None where that is not known before it is written
        """
        if num_bytes is not None:
            num_bytes += carried_bytes(self._plan.run_folder)
        self._in_flight_bytes = num_bytes
        if self._plan.policy.max_disk_bytes is not None and num_bytes is not None:
            self._prune()  # the bound was lowered, or an earlier writer died before it did this
            if shortage := self._store.shortage(self._plan.policy, in_flight_bytes=num_bytes):
                raise OSError(errno.EDQUOT, shortage)
        return self._store.begin(step)

    def commit(self, staging: Path, manifest: Manifest, began: Began) -> SaveResult:
        """Makes a written folder a checkpoint, and does what follows. raises OSError where there is none

        manifest  with the digests of all files but those that every checkpoint of the run carries
        """
        described = {**manifest.files, **carry(self._plan.run_folder, staging)}
        manifest = replace(manifest, files=dict(sorted(described.items())))
        self._before_commit()  # the records up to this step must not be lost where the checkpoint is not
        self._store.commit(staging, manifest)
        if self._in_flight_bytes is None:
            self._in_flight_bytes = manifest.num_bytes + MANIFEST_BYTES
        final = self._store.path(manifest.step)
        self._offer(final, is_last=manifest.reason == "final")
        seconds, cpu_seconds = began.spent()
        costs = {"bytes": manifest.num_bytes, "seconds": round(seconds, 3), "cpu_seconds": round(cpu_seconds, 3)}
        digest = manifest_digest(final)
        self._journal.write("save", step=manifest.step, digest=digest, reason=manifest.reason, **costs)
        what_follows = {
            "the marker of a save": self._plan.marker.touch,
            "old checkpoints": self._prune,
            "the links latest and best": self._store.point_links,
        }
        untidy = _failures(what_follows)
        return SaveResult(manifest.step, manifest.reason, None, None, manifest.num_bytes, seconds, cpu_seconds, untidy)

    def fail(self, manifest: Manifest, failure: str) -> SaveResult:
        """There is no checkpoint of this step, because writing it failed."""
        self._journal.write("save_failed", step=manifest.step, reason=manifest.reason, failure=failure)
        return SaveResult(manifest.step, manifest.reason, failure, untidy=self._remove_staging(manifest.step))

    def leave_out(self, manifest: Manifest, tensor: str) -> SaveResult:
        """There is no checkpoint of this step, because a tensor of it is not finite."""
        self._journal.write("not_saved", step=manifest.step, reason=manifest.reason, tensor=tensor)
        untidy = self._remove_staging(manifest.step)
        return SaveResult(manifest.step, manifest.reason, None, tensor, untidy=untidy)

    def finish_copies(self) -> None:
        """Waits for the copies that were begun."""
        if self._mirror:
            self._mirror.finish()

    def _offer(self, checkpoint: Path, *, is_last: bool) -> None:
        if self._plan.mirror is None:
            return
        if self._mirror is None:
            self._mirror = MirrorWorker(self._plan.mirror, self._journal, self._tell, self._moved)
        self._mirror.offer(checkpoint, is_last=is_last)

    def _prune(self) -> None:
        # A bound on bytes goes before a copy elsewhere, which is told that its checkpoint is gone and takes the next.
        held = self._mirror.held if self._mirror and self._plan.policy.max_disk_bytes is None else ()
        for name, reason in self._store.prune(self._plan.policy, in_flight_bytes=self._in_flight_bytes, held=held):
            self._journal.write("prune", name=name, reason=reason)

    def _remove_staging(self, step: int) -> tuple[str, ...]:
        """A full disk needs the room."""
        staging = self._store.staging(step)
        return _failures({"what is left of it": lambda: files.remove_folder(staging) if staging.exists() else None})


def _failures(works: Mapping[str, Callable[[], object]]) -> tuple[str, ...]:
    """Does each, and says what of it failed; the next save tries again."""
    failures = []
    for what, work in works.items():
        try:
            work()
        except OSError as error:
            failures.append(f"{what}: {one_line(error)}")
    return tuple(failures)
