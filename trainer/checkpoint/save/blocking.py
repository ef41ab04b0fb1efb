"""A save that training waits for: `Accelerator.save_state` and the commit, one after the other.

    all ranks   Accelerator.save_state(.staging-N)      model, optimizer, registered state; each rank its random streams
    all ranks   random_states_R.json                    the same streams as JSON, which is what our own resume reads
    rank 0      digests, then commit.py                 as the writer does it

For a machine whose memory has no room for a snapshot, and the reference for one that has: both ways load to the same bits.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError

from trainer import files
from trainer.checkpoint.commit import Began, CommitPlan, Committer, SaveResult
from trainer.checkpoint.context import CheckpointContext
from trainer.checkpoint.format.manifest import Manifest, describe_files
from trainer.checkpoint.save.writer_client import tell_note
from trainer.text import one_line

WRITE_FAILURES = (OSError, RuntimeError, SafetensorError)
"""What a full or broken disk raises: the system itself, torch.save, safetensors."""


class BlockingSaves:
    """Saves of one run that training waits for. Every method is called on every rank."""

    def __init__(self, context: CheckpointContext, plan: CommitPlan, before_commit: Callable[[], None]) -> None:
        """`before_commit` makes metrics durable up to the saved step."""
        self._context, self._ranks = context, context.ranks
        self._committer = Committer(context.store, plan, before_commit, tell_note)

    def save(self, manifest: Manifest) -> SaveResult:
        """Saves this moment, of which `manifest` says all but the files' digests; what came of it, of which the figures are rank 0's."""
        began = Began()
        staging = self._context.store.staging(manifest.step)
        failure = self._on_main(lambda: self._committer.begin(manifest.step))
        failure = failure or self._ranks.first_failure(_failure_of(lambda: self._write(staging)))
        results: list[SaveResult] = []
        if not failure:
            failure = self._on_main(lambda: results.append(self._commit(staging, manifest, began)))
        if results:
            # It was waited for: its time is the training's, and no writing beside it.
            return replace(results[0], seconds=0.0, cpu_seconds=0.0)
        if failure and self._ranks.is_main:
            return self._committer.fail(manifest, failure)
        return SaveResult(manifest.step, manifest.reason, failure)

    def leave_out(self, manifest: Manifest, tensor: str) -> SaveResult:
        """Makes no checkpoint of this moment, because of a tensor that is not finite."""
        if self._ranks.is_main:
            return self._committer.leave_out(manifest, tensor)
        return SaveResult(manifest.step, manifest.reason, None, tensor)

    def end(self, *, wait_for_copies: bool) -> None:
        """Waits for the copies that are under way, if that is wanted."""
        if wait_for_copies:
            self._committer.finish_copies()

    def _on_main(self, work: Callable[[], object]) -> str | None:
        """Does it on rank 0; why it failed, on every rank."""
        return self._ranks.first_failure(_failure_of(work) if self._ranks.is_main else None)

    def _write(self, staging: Path) -> None:
        context = self._context
        state = context.state.state_dict()
        context.layout.write(staging, context.accelerator, context.model, context.optimizer, state)

    def _commit(self, staging: Path, manifest: Manifest, began: Began) -> SaveResult:
        (staging / "config.yaml").write_text(self._context.description.config_text, encoding="utf-8")
        files.follow_umask(staging)  # safetensors makes its file readable by the owner alone
        return self._committer.commit(staging, replace(manifest, files=describe_files(staging)), began)


def _failure_of(work: Callable[[], object]) -> str | None:
    """Why it failed, in words: a rank that raised alone would leave the others waiting."""
    try:
        work()
    except WRITE_FAILURES as error:
        return one_line(error, 1000)
    return None
