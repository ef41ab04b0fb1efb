"""What pydantic finds wrong with a config, as sentences for the person who wrote it."""

import copy
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import ValidationError

from trainer.aliases import SETTINGS
from trainer.config.plain import Document
from trainer.config.schema import Config
from trainer.config.settings import nearest_key, settings_of
from trainer.config.synonyms import SECTIONS, synonym_of

ELSEWHERE = {
    "precision": "; what a run computes in is the cluster file's mixed_precision",
    "resume": "; where it continues from is resume_from_checkpoint",
    "optimizer": "; which one it is says optimizer.name",
    "data": "; an embedded corpus or a folder of `trainer prepare` is named by data.corpus",
    "model": "; a preset is named by model.preset",
    "schedule": "; its shape is named by schedule.name",
    "checkpoint": "; steps between two are given by checkpoint.every_steps",
    "evaluation": "; steps between two are given by evaluation.every_steps",
    "metrics": "; trackers are named by metrics.trackers",
    "profile": "; the steps to record are given by profile.steps",
    "safety": "; skipped steps in a row that end a run are given by safety.max_bad_steps",
}
"""What a person who writes one value for a section means by it."""


def explain(error: ValidationError, document: Document) -> Iterator[str]:
    """Pydantic's findings as sentences: the dotted key with its place, what was expected, and the nearest name."""
    for found in error.errors():
        key = ".".join(str(part) for part in found["loc"] if not isinstance(part, int))
        place = _place(key, document) or _place(_list_of(found["loc"]), document)
        given = f"{key}{place} is {found['input']!r}, but should be"
        if key in document.problems:  # which says more
            continue
        if found["type"] == "extra_forbidden":
            for name in _unknown_keys(key, found["input"]):
                yield f"unknown key {name}{_place(name, document) or place}; {_help_for(name)}"
        elif found["type"] == "missing" and isinstance(found["loc"][-1], int):
            yield f"{given} a list with more values"
        elif found["type"] == "missing" and (whole := _list_of(found["loc"])):
            yield f"{key}{place} is not set in {found['input']!r}; each entry of {whole} needs it"
        elif found["type"] == "missing":
            instead = ", or max_tokens or max_epochs instead" if key == "max_steps" else ""
            yield f"{key} is not set; a recipe must set it (or an override: {key}=...){instead}"
        elif found["type"] == "model_type":
            yield f"{given} a section with settings: {', '.join(settings_of(key))}{ELSEWHERE.get(key, '')}"
        elif found["type"] == "value_error" and not found["loc"]:
            if not document.problems:  # what a word with two readings contradicts is not known
                yield from str(found["ctx"]["error"]).split("\n")
        else:
            expected = found["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
            yield f"{given} {expected}"


def _list_of(loc: Sequence[int | str]) -> str:
    """The dotted name of the list that a finding lies in; empty without one."""
    names = [str(part) for part in itertools.takewhile(lambda part: not isinstance(part, int), loc)]
    return ".".join(names) if len(names) < len(loc) else ""


def _place(key: str, document: Document) -> str:
    return f" ({document.places[key]})" if key in document.places else ""


def _unknown_keys(key: str, value: Any) -> list[str]:
    """An unknown key itself; for a section of another trainer, the keys that it holds."""
    # `init_args` is jsonargparse's, in any section.
    is_section = key.partition(".")[0] in SECTIONS or key.endswith(".init_args")
    if not is_section or not isinstance(value, dict) or not value:
        return [key]
    return [name for inner, inside in value.items() for name in _unknown_keys(f"{key}.{inner}", inside)]


def _help_for(key: str) -> str:
    """Help after an unknown key: what another trainer's name is here, or the nearest of ours."""
    if key in SETTINGS:
        return f"this is the old name of {SETTINGS[key]}, which is set too; keep one of the two"
    synonym = synonym_of(key)
    return synonym.words if synonym else nearest_key(key)


def further_contradictions(error: ValidationError, values: dict[str, Any]) -> list[str]:
    """What else does not fit together once the settings that are wrong by themselves are left out; empty when that is not known."""
    remaining = copy.deepcopy(values)
    for found in error.errors():
        *sections, last = [part for part in found["loc"] if not isinstance(part, int)] or [""]
        place: Any = remaining
        for section in sections:
            place = place.get(section, {}) if isinstance(place, dict) else {}
        if not isinstance(place, dict) or place.pop(last, None) is None:
            return []
    try:
        Config.model_validate(remaining)
    except ValidationError as second:
        return list(explain(second, Document())) if all(not found["loc"] for found in second.errors()) else []
    return []
