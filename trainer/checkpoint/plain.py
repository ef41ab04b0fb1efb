"""A save that training waits for: `Accelerator.save_state` and the commit, one after the other.

    all ranks   Accelerator.save_state(.staging-N)      model, optimizer, registered state; each rank its random streams
    all ranks   random_states_R.json                    the same streams as JSON, which is what our own resume reads
    rank 0      digests, manifest, fsync, rename        the commit

For a machine whose memory has no room for a snapshot, and the reference for one that has: both ways load to the same bits.
"""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator
from safetensors import SafetensorError

from trainer import files
from trainer.checkpoint import random_states
from trainer.checkpoint.manifest import Manifest, describe_files
from trainer.checkpoint.ranks import Ranks, say
from trainer.checkpoint.store import CheckpointStore

WRITE_FAILURES = (OSError, RuntimeError, SafetensorError)
"""What a full or broken disk raises: the system itself, torch.save, safetensors."""


def plain_save(
    accelerator: Accelerator, ranks: Ranks, store: CheckpointStore, manifest: Manifest, config_text: str,
    before_commit: Callable[[], None],
) -> str | None:  # fmt: skip
    """Commits a checkpoint of this moment, on every rank; returns why it failed, on every rank, None when it did not.

    manifest       all but the digests of the files
    before_commit  makes metrics durable up to the saved step
    """
    staging = store.staging(manifest.step)
    failure = ranks.first_failure(_begin(store, manifest.step) if ranks.is_main else None)
    failure = failure or ranks.first_failure(_write(accelerator, ranks, staging))
    if not failure:
        failure = ranks.first_failure(_commit(store, staging, manifest, config_text, before_commit) if ranks.is_main else None)
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
        for path in (path for path in staging.rglob("*") if path.is_file()):
            os.chmod(path, 0o644)  # safetensors makes its file readable by the owner alone
        before_commit()
        store.commit(staging, replace(manifest, files=describe_files(staging)))
    except WRITE_FAILURES as error:
        return say(error)
    return None


def forget(store: CheckpointStore, step: int) -> None:
    """Removes what a failed save left: a full disk needs the room. raises OSError"""
    staging = store.staging(step)
    if staging.exists():
        files.remove_folder(staging)
