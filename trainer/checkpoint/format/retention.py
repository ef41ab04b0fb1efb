"""Which checkpoints are kept, and why: a pure function of the manifests on disk, so that bounds survive restarts.

    latest      the newest: there is never a moment without a checkpoint
    rolling     the last `keep_last` (two at least, where a run may roll back: it needs one from before the step at which it may have
                gone wrong); while losses are not usual, the last one from before that instead of the oldest of these
    agreed      the newest from when all processes were last found to hold the same weights and moments
    every       multiples of `keep_every_steps`, for good
    epoch       the last `keep_epochs` of those made at the end of an epoch
    best        the `keep_best` with the lowest validation loss
    pinned      what a person wants to keep
    interrupt   the newest, where the run was interrupted there
    final       the newest, where the run is finished

One checkpoint on disk may be kept for several reasons. `max_disk_bytes` goes before every tier but what is protected: the newest,
the best, the pinned, and what is held because it is being loaded.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, NamedTuple

from trainer.checkpoint.format.manifest import Manifest, folder_name
from trainer.text import size

if TYPE_CHECKING:
    from trainer.config.schema import CheckpointConfig

Names = Collection[str]
"""Of folders, as those that stay whatever the policy says: what is being loaded."""

UNKEPT = "no tier keeps it"


@dataclass(frozen=True)
class Policy:
    """How many checkpoints each tier keeps, and how many bytes all of them may take."""

    keep_last: int
    keep_best: int
    keep_every_steps: int | None = None
    keep_epochs: int = 0
    max_disk_bytes: int | None = None
    """Bound on everything in the folder, the checkpoint being written included; None: no bound."""
    keep_agreed: int = 0
    """1 where processes compare what they hold, and one from when they agreed is kept."""


@dataclass(frozen=True)
class Holding:
    """What a folder of checkpoints holds: all that decides what goes."""

    manifests: Sequence[Manifest]
    """Those of the sound checkpoints."""
    checkpoint_bytes: Mapping[int, int]
    """Bytes on disk of each of them, by its step."""
    set_aside_bytes: Mapping[str, int] = field(default_factory=dict)
    """Bytes of each folder that was set aside, by its name; the first to go comes first."""
    other_bytes: int = 0
    """Bytes of everything else: what pruning leaves alone."""

    @property
    def num_bytes(self) -> int:
        return sum(self.checkpoint_bytes.values()) + sum(self.set_aside_bytes.values()) + self.other_bytes


class Removal(NamedTuple):
    """A folder that goes, and why."""

    name: str
    reason: str
    num_bytes: int


def policy_of(settings: "CheckpointConfig", max_rollbacks: int = 0, *, keep_agreed: int = 0) -> Policy:
    """The policy that a config asks for, where so many rollbacks are allowed; `keep_agreed`: 1 where processes compare what they hold."""
    names = [entry.name for entry in fields(Policy) if entry.name != "keep_agreed"]
    policy = Policy(**{name: getattr(settings, name) for name in names}, keep_agreed=keep_agreed)
    return replace(policy, keep_last=max(policy.keep_last, 2)) if max_rollbacks else policy


def best_first(manifests: Sequence[Manifest]) -> list[Manifest]:
    """Those with a validation loss, lowest first; the older of two equal ones first.

    Losses compare on one validation data only: that of the newest, or of the newest evaluated one where the newest's has no loss yet.
    """
    evaluated = [m for m in manifests if m.val_loss is not None and math.isfinite(m.val_loss)]
    if evaluated:
        current = max(manifests, key=lambda m: m.step).validation
        if all(m.validation != current for m in evaluated):
            current = max(evaluated, key=lambda m: m.step).validation
        evaluated = [m for m in evaluated if m.validation == current]
    return sorted(evaluated, key=lambda m: (m.val_loss, m.step))


def tiers(manifests: Sequence[Manifest], policy: Policy) -> dict[int, list[str]]:
    """The tiers that keep each checkpoint, by its step; an empty list means it goes."""
    newest_first = sorted(manifests, key=lambda m: m.step, reverse=True)
    kept: dict[int, list[str]] = {m.step: [] for m in newest_first}
    for tier, members in _members(newest_first, policy).items():
        for manifest in members:
            kept[manifest.step].append(tier)
    return kept


def last_sure(manifests: Sequence[Manifest]) -> Manifest | None:
    """The newest checkpoint after which a usual loss came, while those of the newest's run are not usual; None while all is well.

    A run that ends as diverged sets aside what came after it (diverged.py), so this one is what is left of it.
    """
    newest = max(manifests, key=lambda m: m.step, default=None)
    of_losses = newest.state.get("guard", {}).get("usual") if newest else None  # earlier versions did not keep it
    usual = of_losses.get("step") if isinstance(of_losses, Mapping) else None
    if newest is None or not isinstance(usual, int) or usual >= newest.step:
        return None
    return max((m for m in manifests if m.step < usual), key=lambda m: m.step, default=None)


def _rolling(newest_first: Sequence[Manifest], keep_last: int) -> list[Manifest]:
    """The last `keep_last`, of which the last sure one is always one, where more than one is kept."""
    last, sure = list(newest_first[:keep_last]), last_sure(newest_first)
    return last if sure is None or sure in last or keep_last < 2 else [*last[:-1], sure]


def _agreed(newest_first: Sequence[Manifest]) -> list[Manifest]:
    """The newest at or before the step at which the digests of all ranks last agreed, by the newest manifest; none where nobody looked."""
    step = newest_first[0].state.get("rollbacks", {}).get("agreed") if newest_first else None
    return [] if step is None else [m for m in newest_first if m.step <= step][:1]


def _members(newest_first: Sequence[Manifest], policy: Policy) -> dict[str, list[Manifest]]:
    """Each tier's rule."""
    newest, every = list(newest_first[:1]), policy.keep_every_steps
    return {
        "latest": newest,
        "rolling": _rolling(newest_first, policy.keep_last),
        "agreed": _agreed(newest_first) if policy.keep_agreed else [],
        "every": [m for m in newest_first if every and m.step % every == 0],
        "epoch": [m for m in newest_first if m.epoch is not None][: policy.keep_epochs],
        "best": best_first(newest_first)[: policy.keep_best],
        "pinned": [m for m in newest_first if m.pinned],
        "interrupt": [m for m in newest if m.reason == "interrupt"],
        "final": [m for m in newest if m.reason == "final"],
    }


def protected(manifests: Sequence[Manifest], policy: Policy, held: Names = ()) -> set[int]:
    """The steps that no bound removes: the newest, the best, the pinned, and those whose folders are held."""
    newest_first = sorted(manifests, key=lambda m: m.step, reverse=True)
    best = best_first(newest_first)[: min(policy.keep_best, 1)]
    chosen = [m for m in newest_first if m.pinned or folder_name(m.step) in held]
    return {m.step for m in (*newest_first[:1], *best, *chosen)}


def removals(holding: Holding, policy: Policy, *, in_flight_bytes: int = 0, held: Names = ()) -> list[Removal]:
    """What goes, in this order: first what no tier keeps, then what the bound leaves no room for, the least valuable first.

    in_flight_bytes  of the checkpoint that is being written, or will be next; the bound holds with it
    """
    kept = tiers(holding.manifests, policy)
    going = [
        Removal(folder_name(step), UNKEPT, holding.checkpoint_bytes[step])
        for step in sorted(kept)
        if not kept[step] and folder_name(step) not in held
    ]
    if policy.max_disk_bytes is None:
        return going
    taken = holding.num_bytes + in_flight_bytes - sum(removal.num_bytes for removal in going)
    for name, what, num_bytes in _least_valuable_first(holding, policy, held):
        if taken <= policy.max_disk_bytes:
            break
        reason = f"max_disk_bytes: {size(taken)} with one being written, {size(policy.max_disk_bytes)} allowed; {what}"
        going.append(Removal(name, reason, num_bytes))
        taken -= num_bytes
    return going


def _least_valuable_first(holding: Holding, policy: Policy, held: Names) -> Iterator[tuple[str, str, int]]:
    """Name, place in the order, and bytes of each folder that a bound may remove."""
    for name, num_bytes in holding.set_aside_bytes.items():
        if name not in held:
            yield name, "what was set aside goes first", num_bytes
    kept, stays = tiers(holding.manifests, policy), protected(holding.manifests, policy, held)
    sure = last_sure(holding.manifests)  # it goes last
    in_order = _by_value(holding.manifests, kept)
    for step, tier in sorted(in_order, key=lambda pair: sure is not None and pair[0] == sure.step):
        if step not in stays:
            what = "the worst of the best" if tier == "best" else f"the oldest of the tier {tier!r}"
            yield folder_name(step), f"{what} goes next", holding.checkpoint_bytes[step]


def _by_value(manifests: Sequence[Manifest], kept: Mapping[int, list[str]]) -> Iterator[tuple[int, str]]:
    """Kept steps with the tier that each is worth most in: rolling, then epochs, then every n, oldest first, then the best, worst first."""
    best_last = [m.step for m in reversed(best_first(manifests))]
    ranks = ("rolling", "agreed", "epoch", "every", "best")
    worth = {step: max((ranks.index(tier) for tier in kept[step] if tier in ranks), default=-1) for step in kept}
    for rank, tier in enumerate(ranks):
        for step in best_last if tier == "best" else sorted(kept):
            if worth[step] == rank:
                yield step, tier


def shortage(holding: Holding, policy: Policy, *, in_flight_bytes: int, held: Names = ()) -> str | None:
    """Why the bound cannot hold even what is never removed and the one being written, in a paragraph; None when it can."""
    if policy.max_disk_bytes is None:
        return None
    steps = sorted(protected(holding.manifests, policy, held))
    staying = sum(holding.checkpoint_bytes[step] for step in steps)
    others = holding.other_bytes + sum(n for name, n in holding.set_aside_bytes.items() if name in held)
    needed = staying + others + in_flight_bytes
    if needed <= policy.max_disk_bytes:
        return None
    named = f" (steps {', '.join(map(str, steps))})" if steps else ""
    return (
        f"checkpoint.max_disk_bytes is {size(policy.max_disk_bytes)}, and {size(needed)} are needed: {size(staying)} for the newest, the "
        f"best and the pinned checkpoints{named}, which are never removed, {size(others)} for what else is in the folder, and "
        f"{size(in_flight_bytes)} for the one being written; set checkpoint.max_disk_bytes to {needed} or more, or unpin a checkpoint, or "
        "move what you do not need out of the folder"
    )


def least_bytes(policy: Policy, one_bytes: int) -> int:
    """The smallest bound with which a run can save at all: the newest, the best, and one being written."""
    return (2 + min(policy.keep_best, 1)) * one_bytes


def most_kept(policy: Policy, max_steps: int, *, has_copies: bool = False) -> int:
    """The most checkpoints that are kept at once in a run of so many steps, pinned ones not counted.

    has_copies  whether there is a mirror: what is being copied there and what is next stay too, where no bound goes before them
    """
    for_good = max_steps // policy.keep_every_steps if policy.keep_every_steps else 0
    held = 2 if has_copies and policy.max_disk_bytes is None else 0
    return max(policy.keep_last, 1) + policy.keep_agreed + policy.keep_best + policy.keep_epochs + for_good + held
