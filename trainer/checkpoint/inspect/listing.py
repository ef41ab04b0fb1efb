"""The checkpoints of a run as a table: what they are, why they are kept, whether they are whole, and which would go."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from trainer.checkpoint.format import verified
from trainer.checkpoint.format.manifest import MANIFEST, Manifest, folder_name
from trainer.checkpoint.format.retention import Policy, Removal, policy_of, protected, tiers
from trainer.checkpoint.format.store import CheckpointStore, Entry, folder_bytes, verify
from trainer.checkpoint.resume.lock import lock_now
from trainer.checkpoint.resume.lookup import all_of
from trainer.config.load import load_resolved
from trainer.errors import CheckpointError, TrainerError
from trainer.text import age, ago, count, duration, size, table


def listing(folder: Path, *, as_json: bool = False) -> str:
    """Every checkpoint in a folder, newest first. Looks at manifests, names and sizes; `verification` reads the bytes."""
    entries = all_of(folder)
    kept, unknown = _kept(_beside(entries[0]))
    facts = [entry_facts(entry, _tiers_of(entry, kept)) for entry in entries]
    if as_json:
        return "\n".join(map(json.dumps, facts))
    rows = [("step", "age", "kept as", "loss", "val loss", "tokens", "size", "sound?"), *map(_row, entries, facts)]
    notes = [f"why each is kept is not known: {unknown}"] if unknown else []
    aside = CheckpointStore(folder).set_aside_folders()
    if aside:
        taken = size(sum(map(folder_bytes, aside)))
        notes.append(f"set aside: {', '.join(path.name for path in aside)} ({taken})")
    total = size(sum(fact["bytes"] for fact in facts))
    return "\n".join([f"{folder}  ({len(entries)}, {total})", table(rows), *(f"  {note}" for note in notes)])


def verification(folder: Path) -> tuple[str, bool]:
    """Reads every byte of every checkpoint in a folder and remembers what it found; returns that, and whether all are sound."""
    lines, all_sound = [], True
    for entry in all_of(folder):
        started = time.perf_counter()
        problems = verify(entry.path)
        if not entry.path.is_dir():
            lines.append(f"{entry.path.name}: was removed meanwhile")
            continue
        all_sound &= not problems
        took = duration(time.perf_counter() - started)
        found = "; ".join(problems) if problems else f"sound ({size(entry.described().num_bytes)} read in {took})"
        lines.append(f"{entry.path.name}: {found}{_remembered(entry, problems)}")
    return "\n".join(lines), all_sound


def _remembered(entry: Entry, problems: Sequence[str]) -> str:
    """Remembers a verification of a checkpoint that has its place among others; where that fails, a remark about it."""
    if entry.manifest is None or not _has_its_place(entry):
        return ""
    try:
        verified.remember(entry.path.parent, entry.manifest, problems)
    except OSError as error:
        return f" (not remembered: {error.strerror})"
    return ""


def _has_its_place(entry: Entry) -> bool:
    """Whether it is one of its run's checkpoints, and not a copy under another name or one that was set aside."""
    return entry.step is not None and entry.path.name == CheckpointStore(entry.path.parent).path(entry.step).name


def _policy_of(entry: Entry) -> Policy:
    """The policy in its config. raises ConfigError, OSError"""
    config = load_resolved(entry.path / "config.yaml")
    has_twins = entry.manifest is not None and entry.manifest.world_size > 1 and config.safety.digest_every_steps > 0
    return policy_of(config.checkpoint, config.safety.rollback.max, keep_agreed=int(has_twins))


def _policy_of_newest(folder: Path) -> Policy:
    """That of the newest checkpoint that is whole; CheckpointError when none is."""
    for entry in all_of(folder):
        if entry.is_whole:
            return _policy_of(entry)
    raise CheckpointError(
        f"no checkpoint in {folder} is whole, so none says what is to be kept; restore one from a copy, or move the folder away"
    )


def pruning(folder: Path, *, dry_run: bool, rules: Mapping[str, int] = MappingProxyType({})) -> str:
    """Says what goes by the newest checkpoint's policy and why; removes it unless this is a dry run.

    rules   fields of the policy that are another this once
    raises CheckpointError while a trainer or its writer has the folder: it prunes after every commit itself
    """
    if (folder / MANIFEST).is_file():
        raise CheckpointError(f"{folder} is one checkpoint, and pruning is of a whole run; name the run or its folder")
    policy, store = replace(_policy_of_newest(folder), **rules), CheckpointStore(folder)
    if dry_run:
        _prove(store, policy)
        going = store.removals(policy)
        what = f"would go, {size(sum(removal.num_bytes for removal in going))} in all"
    else:
        going, what = _prune(store, policy), "removed"
    rows = [("checkpoint", "size", "why"), *((name, size(num_bytes), reason) for name, reason, num_bytes in going)]
    text = f"{folder}: {len(going)} {what}\n{table(rows)}" if going else f"{folder}: nothing to remove"
    short = store.shortage(policy)
    return f"{text}\n{short}" if short else text


def _prove(store: CheckpointStore, policy: Policy) -> None:
    """Reads every byte of what pruning counts on (the newest, the best, the pinned); a damaged one is remembered, and counts for nothing.

    raises  CheckpointError when that cannot be remembered
    """
    sound: set[int] = set()
    while store.removals(policy):
        by_step = {manifest.step: manifest for manifest in store.holding().manifests}
        unread = protected(list(by_step.values()), policy) - sound
        if not unread:
            return
        for step in unread:
            problems = verify(store.path(step))
            if not problems:
                sound.add(step)
            elif store.path(step).is_dir():  # a trainer prunes meanwhile
                _remember_damage(store.folder, by_step[step], problems)


def _remember_damage(folder: Path, manifest: Manifest, problems: Sequence[str]) -> None:
    try:
        verified.remember(folder, manifest, problems)
    except OSError as error:
        raise CheckpointError(
            f"{folder_name(manifest.step)} is damaged ({'; '.join(problems)}), which cannot be written down in {folder} ({error.strerror}), so "
            "nothing is pruned; fix that and prune again"
        ) from None


def _prune(store: CheckpointStore, policy: Policy) -> list[Removal]:
    """Prunes while nobody else writes there; returns what went."""
    try:
        remedy = "it prunes after every commit itself: wait for it or stop it, or look with --dry-run"
        with lock_now(store.folder, remedy):
            _prove(store, policy)
            going = store.removals(policy)
            gone = {name for name, _ in store.prune(policy)}
    except OSError as error:
        raise CheckpointError(f"{store.folder} could not be pruned ({error}); fix that and prune again") from None
    return [removal for removal in going if removal.name in gone]


def kept_as(entry: Entry) -> list[str]:
    """The tiers that keep a checkpoint among those beside it."""
    return _tiers_of(entry, _kept(_beside(entry))[0])


def _tiers_of(entry: Entry, kept: Mapping[int, list[str]]) -> list[str]:
    return [] if entry.step is None else kept.get(entry.step, [])


def _beside(entry: Entry) -> list[Entry]:
    return CheckpointStore(entry.path.parent).entries() if _has_its_place(entry) else []


def _kept(entries: list[Entry]) -> tuple[dict[int, list[str]], str | None]:
    """The tiers of each checkpoint, by the policy in the newest one's own config; none, and the reason, when it cannot be read."""
    whole = [entry for entry in entries if entry.is_whole]
    if not whole:
        return {}, None
    try:
        policy = _policy_of(whole[0])
    except (TrainerError, OSError) as error:
        return {}, str(error)
    found = verified.last_verifications(whole[0].path.parent)
    sound = [manifest for manifest in map(Entry.described, whole) if not verified.found_damaged(manifest, found)]
    return tiers(sound, policy), None


def entry_facts(entry: Entry, kept_as: Sequence[str]) -> dict[str, Any]:
    """What a listing says of one checkpoint, as plain values."""
    manifest = entry.manifest
    said = ("reason", "epoch", "pinned", "loss", "val_loss", "last_val_loss", "last_val_step", "tokens", "created")
    found = verified.last_verifications(entry.path.parent)
    last = verified.last_verification(manifest, found) if manifest else None
    return {
        "step": entry.step,
        "path": str(entry.path),
        "tiers": list(kept_as),
        "age_seconds": time.time() - datetime.fromisoformat(manifest.created).timestamp() if manifest else None,
        **{name: getattr(manifest, name, None) for name in said},
        "bytes": folder_bytes(entry.path),
        "problem": entry.problem,
        "verified": {"when": last.when.isoformat(), "problems": list(last.problems)} if last else None,
        "sound": sound_words(entry, last),
    }


def sound_words(entry: Entry, last: verified.Verification | None) -> str:
    """Whether a checkpoint is whole by its structure, and what the last verification found, in a few words."""
    if entry.problem:
        return entry.problem
    if last is None:
        return "whole, never verified"
    when = ago(last.age_seconds)
    return f"DAMAGED, found {when}: {'; '.join(last.problems)}" if last.problems else f"whole, verified {when}"


def tier_words(kept_as: Sequence[str], manifest_facts: Mapping[str, Any]) -> str:
    """The tiers in one cell; an epoch has its number."""
    return ", ".join(f"epoch {manifest_facts['epoch']}" if tier == "epoch" else tier for tier in kept_as) or "-"


def _row(entry: Entry, facts: dict[str, Any]) -> tuple[str, ...]:
    said = ("?", "-", "-", "?")
    if m := entry.manifest:
        loss = "-" if m.loss is None else f"{m.loss:.4f}"
        said = (age(facts["age_seconds"]), loss, m.val_loss_words or "-", count(m.tokens))
    when, loss, val_loss, tokens = said
    kept_as = tier_words(facts["tiers"], facts)
    return str(entry.step), when, kept_as, loss, val_loss, tokens, size(facts["bytes"]), facts["sound"]
