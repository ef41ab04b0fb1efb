"""Which checkpoints are kept, and why: a pure function of the manifests on disk, so that bounds survive restarts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.checkpoint.manifest import Manifest


@dataclass(frozen=True)
class Policy:
    """How many checkpoints each tier keeps."""

    keep_last: int
    keep_best: int


def best_first(manifests: Sequence[Manifest]) -> list[Manifest]:
    """Those with a validation loss, lowest first; the older of two equal ones first.

    Losses on other validation data than the newest's do not compare, and are left out.
    """
    evaluated = [m for m in manifests if m.val_loss is not None and math.isfinite(m.val_loss)]
    if evaluated:
        newest = max(evaluated, key=lambda m: m.step)
        evaluated = [m for m in evaluated if m.validation == newest.validation]
    return sorted(evaluated, key=lambda m: (m.val_loss, m.step))


def tiers(manifests: Sequence[Manifest], policy: Policy) -> dict[int, list[str]]:
    """The tiers that keep each checkpoint, by its step; an empty list means it goes.

    The newest is always kept, whatever the policy says: there is never a moment without a checkpoint.
    """
    newest_first = sorted(manifests, key=lambda m: m.step, reverse=True)
    kept: dict[int, list[str]] = {m.step: [] for m in newest_first}
    for manifest in newest_first[:1]:
        kept[manifest.step].append("latest")
    for manifest in newest_first[: policy.keep_last]:
        kept[manifest.step].append("last")
    for manifest in best_first(newest_first)[: policy.keep_best]:
        kept[manifest.step].append("best")
    for manifest in newest_first[:1]:
        if manifest.reason in ("final", "interrupt"):
            kept[manifest.step].append(manifest.reason)
    return kept
