"""A recipe and its overrides become a Config: defaults, then the recipe's `base`, then the recipe, then `key=value`.

Every value knows where it came from, and all mistakes are reported at once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from trainer.aliases import SETTINGS, rename_settings
from trainer.config.explain import explain, further_contradictions
from trainer.config.length import LENGTHS, NOT_YET_KNOWN, length_of, length_problems, resolve_length
from trainer.config.plain import Document, Dumper, Loader, both_readings, read_document
from trainer.config.schema import Config, contradictions
from trainer.config.secrets import take_webhook
from trainer.config.settings import fields_of, kind_of, plain, type_of
from trainer.errors import ConfigError
from trainer.text import did_you_mean

RECIPES = Path(__file__).resolve().parent.parent / "recipes"


@dataclass(frozen=True)
class Loaded:
    """A resolved config, and where each of its values came from (`optimizer.lr` -> `gpt2-124m.yaml:14`)."""

    config: Config
    origins: dict[str, str]
    old_names: dict[str, str]
    """Settings that were given under a name of an earlier version: that name -> where it stands."""
    webhook: str | None = field(default=None, repr=False)
    """The URL that a recipe gives as alerts.webhook: a secret, so that no config holds it."""

    @property
    def notices(self) -> list[str]:
        """What the person who gave the settings should know of how they were read, a sentence each."""
        renamed = [f"{old} ({place}) is called {SETTINGS[old]} now" for old, place in self.old_names.items()]
        return [self.length, *renamed] if self.length else renamed

    @property
    def length(self) -> str | None:
        """How max_steps came about, as a sentence, where it was computed."""
        origin = self.origins["max_steps"]
        is_computed = origin.startswith(("max_tokens ", "max_epochs "))
        return f"max_steps is {self.config.max_steps:,}: {origin}" if is_computed else None


def recipe_names() -> list[str]:
    """The shipped recipes by name."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def find_recipe(recipe: str, beside: Path | None = None) -> Path:
    """The file of a recipe given by name or by path (relative to the file that names it, when one does)."""
    if recipe.endswith((".yaml", ".yml")) or "/" in recipe:
        path = Path(recipe)
        candidates = [path] if beside is None or path.is_absolute() else [beside / path, path]
        for candidate in candidates:
            if candidate.is_file():
                return candidate
        shipped = ", ".join(recipe_names())
        raise ConfigError(
            f"recipe {recipe} does not exist; give the path of a YAML file or a shipped recipe: {shipped}"
        )
    path = RECIPES / f"{recipe}.yaml"
    if not path.is_file():
        raise ConfigError(f"unknown recipe {recipe!r}; {did_you_mean(recipe, recipe_names())}")
    return path


def load(recipe: str, overrides: Sequence[str] = (), count_sequences: Callable[[Config], int] | None = None) -> Loaded:
    """Resolves a recipe (name or path) and `key=value` overrides; raises ConfigError with every problem found.

    count_sequences   how many training sequences the data of a config has, asked where max_epochs says how long the run is
    """
    path = find_recipe(recipe)
    document = _read_recipe(path, ())
    problems = [*_apply_overrides(overrides, document), *document.problems.values()]
    webhook, unfit = take_webhook(document)
    problems += unfit
    config = _validate(document, problems, count_sequences)
    if not config.name:
        config = config.model_copy(update={"name": path.stem})
        document.places["name"] = "the recipe's name"
        if unfit := contradictions(config):
            raise ConfigError(*unfit)
    return Loaded(config, {key: _origin(key, document.places) for key in flatten(config)}, document.old_names, webhook)


def _validate(document: Document, problems: list[str], count_sequences: Callable[[Config], int] | None) -> Config:
    """The config that a recipe and its overrides say, with max_steps in place of the tokens or epochs that it may give."""
    values, length = document.values, length_of(document.values)
    unresolved = values if length in (None, "max_steps") else {**values, "max_steps": NOT_YET_KNOWN}
    try:
        config = Config.model_validate(unresolved)
    except ValidationError as error:
        raise ConfigError(*problems, *explain(error, document), *further_contradictions(error, unresolved)) from None
    if problems:
        raise ConfigError(*problems)
    if unresolved is values or length is None:
        return config
    steps, words = resolve_length(config, length, count_sequences)
    document.places["max_steps"] = f"{words} ({document.places[length]})"
    config = config.model_copy(update={"max_steps": steps, **dict.fromkeys(set(LENGTHS) - {"max_steps"})})
    if unfit := contradictions(config):
        raise ConfigError(*unfit)
    return config


def load_resolved(path: Path) -> Config:
    """Reads a config.yaml that a run or a checkpoint keeps."""
    return load(str(path)).config


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a config.yaml that a run keeps, as nested mappings, whatever version wrote it: nothing is checked or filled in.

    raises  ConfigError when the file cannot be read, or is not a mapping
    """
    return _read_recipe(path, ()).values


def kept_settings(path: Path) -> dict[str, Any]:
    """The settings of a config.yaml that a run or a checkpoint keeps, by dotted name, whatever version wrote it.

    One that its version did not know yet has today's default, which is what was done before; one that is no setting any more stays.

    raises  ConfigError when the file cannot be read, or is not a mapping
    """
    return {**default_settings(), **_by_dotted_name(read_settings(path), Config, "")}


def default_settings() -> dict[str, Any]:
    """The default of every setting that has one, by dotted name."""
    return {name: plain(field.get_default()) for name, field in fields_of() if not field.is_required()}


def _by_dotted_name(values: dict[str, Any], section: type[BaseModel], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        inner = section.model_fields[name].annotation if name in section.model_fields else None
        if isinstance(value, dict) and isinstance(inner, type) and issubclass(inner, BaseModel):
            flat.update(_by_dotted_name(value, inner, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def flatten(config: BaseModel) -> dict[str, Any]:
    """Every setting under its dotted name, in the schema's order."""
    flat: dict[str, Any] = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            flat.update({f"{name}.{key}": inner for key, inner in flatten(value).items()})
        else:
            flat[name] = plain(value)
    return flat


def dump(config: Config) -> str:
    """The config as YAML that `load` reads back to an equal one."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=Dumper, sort_keys=False, width=120)


def _read_recipe(path: Path, seen: tuple[Path, ...]) -> Document:
    """One recipe over its base, with the line each value stands on."""
    path = path.resolve()
    if path in seen:
        chain = " -> ".join(p.name for p in (*seen, path))
        raise ConfigError(f"recipe {path.name} is its own base ({chain}); remove one `base:`")
    document = read_document(path, f"recipe {path}", kind_of)
    if "base" in document.problems:
        raise ConfigError(document.problems["base"])
    _use_new_names(document)
    document.problems.update(length_problems(document.values, document.places))
    base = document.values.pop("base", None)
    document.places.pop("base", None)
    if base is None:
        return document
    below = _read_recipe(find_recipe(str(base), path.parent), (*seen, path))
    if length_of(document.values):
        _forget_length(below)
    return Document(
        _merge(below.values, document.values),
        {**below.places, **document.places},
        {**{key: words for key, words in below.problems.items() if key not in document.places}, **document.problems},
        {**below.old_names, **document.old_names},
    )


def _use_new_names(document: Document) -> None:
    """Gives settings that have a name of an earlier version that of today, and notes where the old name stood."""
    for old, new in rename_settings(document.values).items():
        document.old_names[old] = document.places[new] = document.places.pop(old, "override")
        if old in document.problems:
            document.problems[new] = document.problems.pop(old)


def _forget_length(below: Document) -> None:
    """Takes away what a weaker place says of the run's length: one from a stronger place counts instead, whichever of the three it is."""
    for key in LENGTHS:
        for part in (below.values, below.places, below.problems):
            part.pop(key, None)


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _origin(key: str, origins: dict[str, str]) -> str:
    """Where a value came from; every place, for a mapping that was put together from several."""
    places = [place for name, place in origins.items() if name.startswith(f"{key}.")]
    return ", ".join(dict.fromkeys(places)) or origins.get(key, "default")


def _apply_overrides(overrides: Sequence[str], document: Document) -> list[str]:
    """Puts `key=value` over what the recipe says; returns what is wrong with them."""
    problems: list[str] = []
    typed = Document()
    for override in overrides:
        typed_key, equals, text = override.partition("=")
        key = SETTINGS.get(typed_key, typed_key)
        if key != typed_key:
            document.old_names[typed_key] = "override"
        if not equals or not key:
            problems.append(f"override {override!r} is not of the form key=value, e.g. optimizer.lr=3e-4")
            continue
        if key in LENGTHS:
            typed.values[key], readings = _override_value(key, text)
            typed.places[key] = "override"
        else:
            readings = _apply_override(key, text, override, document, problems)
        for part in (document.problems, typed.problems):
            part.pop(key, None)
        if readings:
            typed.problems[key] = f"{key} (override) is {readings}"
    if length_of(typed.values):
        _forget_length(document)
    document.values.update(typed.values)
    document.places.update(typed.places)
    document.problems.update(typed.problems)
    _use_new_names(document)
    return problems + list(length_problems(typed.values, typed.places).values())


def _apply_override(key: str, text: str, override: str, document: Document, problems: list[str]) -> str | None:
    """Sets one value; returns both readings of a word that has two."""
    *sections, last = key.split(".")
    place = document.values
    for section in sections:
        inner = place.setdefault(section, {})
        if not isinstance(inner, dict):
            problems.append(f"override {override!r}: {section} is a single setting and has no {last}")
            return None
        place = inner
    place[last], readings = _override_value(key, text)
    document.places[key] = "override"
    return readings


def _override_value(key: str, text: str) -> tuple[Any, str | None]:
    """What was typed after `key=`, and both readings of a word that has two.

    It is read as YAML, but verbatim for a text setting, where 0123, on, # or 2026-01-01 mean themselves.
    """
    kind = type_of(key)
    if kind in (str, str | None):
        return None if text in ("", "null", "~") and kind is not str else text, None
    if not text:
        return None, None
    try:
        node = yaml.compose(text, Loader)
        return yaml.load(text, Loader), both_readings(node, kind_of(key), Loader("")) if node else None
    except (yaml.YAMLError, ValueError, RecursionError):
        return text, None
