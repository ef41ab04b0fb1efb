"""What differs between a checkpoint and the run that goes on from it: what is refused, what has to be allowed, and what is only told.

refused always             shapes of the parameters, size of the vocabulary: nothing could be loaded
refused unless allowed     data, tokenizer, sequence_length, seed, optimizer, model.FIELD (any field of the resolved model); a name in
                           `resume.allow_changes` allows it
told                       every other setting, the number of processes, the precision, what it is computed on and how, versions
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.checkpoint.format.manifest import UNSPECIFIC, Description, Manifest
from trainer.config.load import kept_settings
from trainer.text import few

NEVER = "never"
"""The key of what no setting allows."""

_ALLOWABLE = ("data", "tokenizer", "sequence_length", "seed", "optimizer")
"""Facts of a manifest's identity whose change can be allowed, by the name that does it; others are refused always."""

_TOLD_ELSEWHERE = ("name", "resume_from_checkpoint", *_ALLOWABLE, "optimizer.name", "model.preset", "model.config")
"""Settings that say where to go on, or whose meaning is compared as a fact of the identity or as a field of the resolved model."""

CONSEQUENCES = {
    "data": "the position stays, in the order of the new data: what was trained on may come again",
    "sequence_length": "the position stays, counted in sequences of the new length: what was trained on may come again",
    "seed": "the position stays, in the new seed's order: what was trained on may come again",
    "optimizer": "its moments begin anew",
}
"""What a change means for the run, by the name that allows it."""


NEWLY_TRAINED, NEWLY_FROZEN = "newly trained", "newly frozen"

_OF_TRAINING = {NEWLY_TRAINED: "their moments begin at zero", NEWLY_FROZEN: "their moments are dropped"}
"""What the changes of these names mean for the parameters that they name."""


@dataclass(frozen=True)
class Change:
    """One thing that is not what it was when the checkpoint was made."""

    name: str
    """A setting by its dotted name, `data`, `tokenizer`, `model.FIELD`, `processes`, `precision`, a condition, or a package."""
    before: Any
    now: Any
    key: str | None = None
    """The name in resume.allow_changes without which it is refused; NEVER: always; None: never."""
    is_version: bool = False

    @property
    def words(self) -> str:
        if self.name in _OF_TRAINING:
            return f"{self.name} {few(self.now)}"
        return f"{self.name} {shown(self.before)} -> {shown(self.now)}"


def settings_of(folder: Path) -> dict[str, Any]:
    """The settings that a checkpoint's folder keeps, by dotted name; empty where it keeps none."""
    kept = folder / "config.yaml"
    return kept_settings(kept) if kept.is_file() else {}


def changes(manifest: Manifest, settings: Mapping[str, Any], present: Description, processes: int) -> list[Change]:
    """Everything that differs, what may be refused first.

    settings   those of the checkpoint, by dotted name
    present    the run that goes on, in so many processes

    Models are compared by their resolved configs, defaults included, so it does not matter how a recipe words one. A field
    that only one of the two has came or went with a version of transformers, and says nothing.
    """
    refusable = _of_identity(manifest, settings, present)
    for name, before, now in _unequal(manifest.model, present.model, UNSPECIFIC):
        refusable.append(Change(f"model.{name}", before, now, f"model.{name}"))
    told = _of_training(manifest.frozen, present.frozen)
    told += _of_settings(settings, present, {change.key for change in refusable})
    return refusable + told + _of_the_rest(manifest, settings, present, processes)


def _unequal(
    before: Mapping[str, Any], now: Mapping[str, Any], left_out: Collection[str] = ()
) -> list[tuple[str, Any, Any]]:
    """(name, before, now) for what both have, and not the same."""
    names = [name for name in now if name in before and name not in left_out]
    return [(name, before[name], now[name]) for name in names if before[name] != now[name]]


def _of_identity(manifest: Manifest, settings: Mapping[str, Any], present: Description) -> list[Change]:
    found = []
    for fact in {**manifest.identity, **present.identity}:
        before, now = manifest.identity.get(fact), present.identity.get(fact)
        if fact == "training_data" and present.training_data_at and manifest.identity.get("sequence_length"):
            now = present.training_data_at(manifest.identity["sequence_length"])
        if before == now:
            continue
        name = "data" if fact == "training_data" else fact
        if name == "data":
            before, now = _told_apart(_data_named(settings), before, _data_named(present.settings), now)
        elif name == "tokenizer":
            before, now = _told_apart(manifest.tokenizer, before, present.tokenizer, now)
        found.append(Change(name, before, now, name if name in _ALLOWABLE else NEVER))
    return found


def _of_training(frozen_then: Collection[str], frozen_now: Collection[str]) -> list[Change]:
    """Parameters that were frozen and are trained now, and the other way round."""
    trained = [name for name in frozen_then if name not in frozen_now]
    frozen = [name for name in frozen_now if name not in frozen_then]
    found = [Change(NEWLY_TRAINED, "frozen", trained), Change(NEWLY_FROZEN, "trained", frozen)]
    return [change for change in found if change.now]


def _data_named(settings: Mapping[str, Any]) -> str | None:
    """How a person knows the training data."""
    return settings.get("data.corpus") or _listed(settings.get("data.train"))


def _held_out_named(settings: Mapping[str, Any]) -> str | None:
    """How a person knows the held-out data."""
    return _listed(settings.get("data.validation")) or settings.get("data.corpus")


def _listed(shards: Sequence[Any] | None) -> str | None:
    return ", ".join(map(str, shards)) if shards else None


def _told_apart(
    name_before: str | None, before: str | None, name_now: str | None, now: str | None
) -> tuple[str | None, str | None]:
    """Two things by their names; where these do not tell them apart, with the beginnings of their digests."""
    if name_before and name_now and name_before != name_now:
        return name_before, name_now

    def told(name: str | None, digest: str | None) -> str | None:
        return f"{name} ({digest[:8]})" if name and digest else name or digest

    return told(name_before, before), told(name_now, now)


def _of_settings(settings: Mapping[str, Any], present: Description, refusable: Collection[str | None]) -> list[Change]:
    """Settings that both know and that differ, but those that `refusable` changes have told already."""
    told = {"data": ("data.corpus", "data.train", "data.dtype"), "tokenizer": ("data.tokenizer",)}
    left_out = {name for key in refusable for name in told.get(key or "", ())} | set(_TOLD_ELSEWHERE)
    unequal = _unequal(settings, present.settings, left_out)
    return [Change(*each) for each in unequal if not each[0].startswith("resume.")]


def _of_the_rest(manifest: Manifest, settings: Mapping[str, Any], present: Description, processes: int) -> list[Change]:
    found = []
    held_out = ("data.corpus", "data.validation", "evaluation.num_sequences", "sequence_length")
    is_told = any(settings.get(name) != present.settings.get(name) for name in held_out)
    if manifest.validation and present.validation and manifest.validation != present.validation and not is_told:
        before, now = (_held_out_named(each) for each in (settings, present.settings))
        found.append(Change("held-out data", *_told_apart(before, manifest.validation, now, present.validation)))
    if manifest.world_size != processes:
        found.append(Change("processes", manifest.world_size, processes))
    if manifest.precision != present.precision_now:
        found.append(Change("precision", manifest.precision, present.precision_now))
    conditions = _unequal(manifest.conditions, present.conditions)
    found += [Change(*each) for each in conditions if None not in each]  # None: it does not apply there
    versions = _unequal(manifest.versions, present.versions)
    return found + [Change(name, before, now, is_version=True) for name, before, now in versions]


def refusal(found: Sequence[Change], allowed: Collection[str]) -> str | None:
    """Why these changes are refused, and what allows those that can be; None when nothing is refused."""
    refused = [change for change in found if change.key is not None and change.key not in allowed]
    if not refused:
        return None
    told = "; ".join(_difference(change) for change in refused)
    if any(change.key == NEVER for change in refused):
        return f"{told}. Nothing of it could be loaded; give the new run another name, or undo the change"
    keys = list(dict.fromkeys([*allowed, *(change.key for change in refused if change.key)]))
    return f"{told}. Give the new run another name, undo the change, or allow it: 'resume.allow_changes=[{', '.join(keys)}]'"


def _difference(change: Change) -> str:
    if change.name == "parameter_shapes":
        return "the parameters have other shapes here than in the checkpoint"
    return f"{change.name} is {shown(change.now)} here and {shown(change.before)} in the checkpoint"


def sentences(found: Sequence[Change], step: int) -> list[str]:
    """What has changed since a step, and what that means; empty when nothing has."""
    if not found:
        return []
    meanings = [f"{change.name}: {CONSEQUENCES[change.key]}" for change in found if change.key in CONSEQUENCES]
    meanings += [
        f"{change.name}: {few(change.now, most=8)}: {_OF_TRAINING[change.name]}"
        for change in found
        if change.name in _OF_TRAINING
    ]
    return [f"changed since step {step}: {', '.join(change.words for change in found)}", *meanings]


def markdown(found: Sequence[Change], step: int) -> str:
    """The same for TensorBoard's text."""
    rows = [f"| {change.name} | `{shown(change.before)}` | `{shown(change.now)}` |" for change in found]
    return "\n".join([f"changed since step {step}", "", "| | before | now |", "| --- | --- | --- |", *rows])


def shown(value: Any) -> str:
    """A value in a few characters: a long one without its middle, since paths differ at their ends."""
    if not isinstance(value, str):
        value = "none" if value is None else json.dumps(value, sort_keys=True, default=str)
    return value if len(value) <= 60 else f"{value[:17]}...{value[-40:]}"
