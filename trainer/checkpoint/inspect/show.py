"""One checkpoint, and what differs between two: everything that manifests and configs say, and which tensors are not the same."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

from trainer.checkpoint.format.manifest import Manifest
from trainer.checkpoint.format.store import Entry
from trainer.checkpoint.format.tensors import differing_tensors, shapes
from trainer.checkpoint.inspect.listing import entry_facts, kept_as, tier_words
from trainer.checkpoint.resume.changes import settings_of
from trainer.checkpoint.resume.lookup import one_of
from trainer.config.load import flatten, load_resolved
from trainer.errors import ConfigError, TrainerError
from trainer.experts import active_share
from trainer.hub import is_hub_name
from trainer.text import ago, by_dotted_name, count, few, size, table

SECTIONS = ("precision_facts", "conditions", "identity", "model", "state", "versions")
"""The parts of a manifest that are tables of their own."""

MAX_NAMES = 8
"""Tensors that are named before only their number is said."""


def show(folder: Path, wanted: str, *, as_json: bool = False) -> str:
    """Everything that the manifest of one checkpoint says."""
    entry = one_of(folder, wanted)
    manifest, facts = entry.described(), {**entry_facts(entry, kept_as(entry)), **_parameters(entry)}
    if as_json:
        return json.dumps({**asdict(manifest), **facts}, indent=1)
    described = [(name, size(file["bytes"]), file["xxh3_128"]) for name, file in manifest.files.items()]
    parts = [f"{entry.path}\n{table([*_headline(manifest, facts), *_of_the_hub(entry.path)])}"]
    parts += [_section(name, by_dotted_name(getattr(manifest, name))) for name in SECTIONS]
    parts.append(table([("file", "size", "xxh3-128"), *described], indent=""))
    return "\n\n".join(part for part in parts if part)


def _section(name: str, values: Mapping[str, Any]) -> str:
    return table([(name, ""), *((key, short(value)) for key, value in values.items())], indent="") if values else ""


def _of_the_hub(folder: Path) -> list[tuple[str, str]]:
    """The settings that name something of the hub, each with its commit; none where they cannot be read."""
    try:
        settings = settings_of(folder)
    except ConfigError:
        return []
    return [(key, value) for key, value in settings.items() if isinstance(value, str) and is_hub_name(value)]


def _parameters(entry: Entry) -> dict[str, int | None]:
    """How many weights the file of the model holds, and how many of them a token meets; None where it cannot be read."""
    fields = entry.described().model
    try:
        held = shapes(entry.path / "model.safetensors")
    except (OSError, ValueError):
        return {"parameters": None, "active_parameters": None}
    active = sum(prod(shape) * active_share(name, shape, fields.get) for name, shape in held.items())
    return {"parameters": sum(map(prod, held.values())), "active_parameters": round(active)}


def _parameters_in_words(facts: Mapping[str, Any]) -> str:
    total, active = facts["parameters"], facts["active_parameters"]
    if total is None:
        return "not known"
    return f"{total:,} parameters" + (f", {active:,} active a token" if active < total else "")


def _headline(manifest: Manifest, facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    on = f", on validation data {manifest.validation}" if manifest.validation else ""
    epoch = f", at the end of epoch {manifest.epoch}" if manifest.epoch is not None else ""
    why = manifest.precision_facts.get("sentence")
    return [
        ("made", f"{ago(facts['age_seconds'])} ({manifest.created}), {manifest.reason}{epoch}"),
        ("kept as", tier_words(facts["tiers"], facts)),
        ("sound?", facts["sound"]),
        ("size", f"{size(facts['bytes'])}, {len(manifest.files)} files"),
        ("model", _parameters_in_words(facts)),
        ("progress", f"step {manifest.step}, {manifest.sequences:,} sequences, {count(manifest.tokens)} tokens"),
        ("loss", "not known" if manifest.loss is None else f"{manifest.loss:.4f}"),
        ("val loss", "not evaluated" if manifest.val_loss_words is None else f"{manifest.val_loss_words}{on}"),
        ("made with", f"world_size {manifest.world_size}, precision {manifest.precision}"),
        *([("computes in", why.removeprefix("precision: "))] if why else []),
        *([("frozen", few(manifest.frozen))] if manifest.frozen else []),
        ("tokenizer", f"{manifest.tokenizer or 'none'}, {manifest.vocab_size:,} token ids"),
        *([("began from", manifest.began_from)] if manifest.began_from else []),
        *([("branch of", manifest.branch_of)] if manifest.branch_of else []),
        ("went back to", manifest.origin or "nothing"),
    ]


def diff(folder: Path, first: str, second: str, *, as_json: bool = False) -> str:
    """What differs between two checkpoints: facts, settings, files, and the tensors of the model."""
    a, b = one_of(folder, first), one_of(folder, second)
    found = differences(a, b)
    if as_json:
        return json.dumps({"a": str(a.path), "b": str(b.path), **found})
    parts = [f"A  {a.path}\nB  {b.path}"]
    for name in ("manifest", "settings"):
        rows = [(key, *map(short, pair)) for key, pair in found[name].items()]
        parts.append(table([(name, "A", "B"), *rows], indent="") if rows else f"{name}: the same")
    parts.append(table([("file", ""), *((name, what["words"]) for name, what in found["files"].items())], indent=""))
    return "\n\n".join(parts)


def differences(a: Entry, b: Entry) -> dict[str, dict[str, Any]]:
    """Manifest facts and settings that are not equal, as pairs, and what each file is: by digests, the model by its tensors too."""
    return {
        "manifest": pairs(_facts(a.described()), _facts(b.described())),
        "settings": pairs(_settings(a.path), _settings(b.path)),
        "files": {name: _file(name, a, b) for name in sorted({*a.described().files, *b.described().files})},
    }


def _facts(manifest: Manifest) -> dict[str, Any]:
    return by_dotted_name({key: value for key, value in asdict(manifest).items() if key != "files"})


def _settings(path: Path) -> dict[str, Any]:
    try:
        return flatten(load_resolved(path / "config.yaml"))
    except (TrainerError, OSError) as error:
        return {"config.yaml": f"cannot be read: {error}"}


def _file(name: str, a: Entry, b: Entry) -> dict[str, Any]:
    """Whether a file of both is equal by its digest, in words; of a model that is not, which tensors are not."""
    ours, theirs = a.described().files.get(name), b.described().files.get(name)
    if ours is None or theirs is None:
        return {"equal": False, "words": f"only in {'B' if ours is None else 'A'}"}
    if ours == theirs:
        return {"equal": True, "words": "equal"}
    sizes = f"{size(ours['bytes'])} and {size(theirs['bytes'])}"
    words = f"differs ({'same size' if ours['bytes'] == theirs['bytes'] else sizes})"
    if not name.endswith(".safetensors"):
        return {"equal": False, "words": words}
    try:
        tensors, num_tensors = differing_tensors(a.path / name, b.path / name)
    except (OSError, ValueError) as error:
        return {"equal": False, "words": f"{words}; its tensors cannot be compared: {error}"}
    more = f" and {len(tensors) - MAX_NAMES} more" if len(tensors) > MAX_NAMES else ""
    named = f": {', '.join(tensors[:MAX_NAMES])}{more}" if tensors else ""
    words = f"{words}; {len(tensors)} of {num_tensors} tensors differ{named}"
    return {"equal": False, "tensors": tensors, "words": words}


def pairs(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys whose values are not equal, with both values; None where one has no such key."""
    return {key: (a.get(key), b.get(key)) for key in {**a, **b} if a.get(key) != b.get(key)}


def short(value: Any) -> str:
    """A value in one cell."""
    text = value if isinstance(value, str) else json.dumps(value)
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:57]}..."
