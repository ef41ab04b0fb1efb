"""A recipe and its overrides become a Config: defaults, then the recipe's `base`, then the recipe, then `key=value`.

Every value knows where it came from, and all mistakes are told at once.
"""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from trainer.config.schema import Config, contradictions
from trainer.errors import ConfigError
from trainer.text import did_you_mean, nearest


class _Loader(yaml.SafeLoader):
    """YAML that reads 1e6 and 6e-4 as the numbers they are; PyYAML's own rules want a point and a sign in them."""


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads back: text that looks like such a number goes into quotes."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )

RECIPES = Path(__file__).resolve().parent.parent / "recipes"


@dataclass(frozen=True)
class Loaded:
    """A resolved config, and where each of its values came from (`optimizer.lr` -> `gpt2-124m.yaml:14`)."""

    config: Config
    origins: dict[str, str]


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
        raise ConfigError(
            f"recipe {recipe} does not exist; give the path of a YAML file or a shipped recipe: {', '.join(recipe_names())}"
        )
    path = RECIPES / f"{recipe}.yaml"
    if not path.is_file():
        raise ConfigError(f"unknown recipe {recipe!r}; {did_you_mean(recipe, recipe_names())}")
    return path


def load(recipe: str, overrides: Sequence[str] = ()) -> Loaded:
    """Resolves a recipe (name or path) and `key=value` overrides; raises ConfigError with every problem found."""
    path = find_recipe(recipe)
    values, origins = _read_recipe(path, ())
    problems: list[str] = []
    for override in overrides:
        _apply_override(override, values, origins, problems)
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(*problems, *_explain(error, origins), *_contradictions_besides(error, values)) from None
    if problems:
        raise ConfigError(*problems)
    if not config.name:
        config = config.model_copy(update={"name": path.stem})
        origins["name"] = "the recipe's name"
        if unfit := contradictions(config):
            raise ConfigError(*unfit)
    return Loaded(config, {key: _origin(key, origins) for key in flatten(config)})


def load_resolved(path: Path) -> Config:
    """Reads a config.yaml that a run or a checkpoint keeps."""
    return load(str(path)).config


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a config.yaml that a run keeps, as nested mappings, whatever version wrote it: nothing is checked or filled in.

    raises  ConfigError when the file cannot be read, or is not a mapping
    """
    values, _ = _read_recipe(path, ())
    return values


def kept_settings(path: Path) -> dict[str, Any]:
    """The settings of a config.yaml that a run or a checkpoint keeps, by dotted name, whatever version wrote it.

    One that its version did not know yet has today's default, which is what was done before; one that is no setting any more stays.

    raises  ConfigError when the file cannot be read, or is not a mapping
    """
    return {**_defaults(Config, ""), **_by_dotted_name(read_settings(path), Config, "")}


def _by_dotted_name(values: dict[str, Any], section: type[BaseModel], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        inner = section.model_fields[name].annotation if name in section.model_fields else None
        if isinstance(value, dict) and isinstance(inner, type) and issubclass(inner, BaseModel):
            flat.update(_by_dotted_name(value, inner, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _defaults(section: type[BaseModel], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            flat.update(_defaults(field.annotation, f"{prefix}{name}."))
        elif not field.is_required():
            default = field.get_default()
            flat[f"{prefix}{name}"] = list(default) if isinstance(default, tuple) else default
    return flat


def flatten(config: BaseModel) -> dict[str, Any]:
    """Every setting under its dotted name, in the schema's order."""
    flat: dict[str, Any] = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            flat.update({f"{name}.{key}": inner for key, inner in flatten(value).items()})
        else:
            flat[name] = list(value) if isinstance(value, tuple) else value
    return flat


def dump(config: Config) -> str:
    """The config as YAML that `load` reads back to an equal one."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, width=120)


def settings_help() -> list[tuple[str, str, str]]:
    """(dotted name, default, help) of every setting, from the schema's own words."""
    return list(_help_of(Config, ""))


def settings_table() -> str:
    """All settings as the Markdown table that stands in the README."""
    rows = [("setting", "default", "meaning"), ("---", "---", "---")]
    rows += [
        (f"`{name}`", default if default == "required" else f"`{default}`", words)
        for name, default, words in settings_help()
    ]
    return "\n".join(
        "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in row) + " |" for row in rows
    )


def _help_of(section: type[BaseModel], prefix: str):
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _help_of(field.annotation, f"{prefix}{name}.")
        else:
            default = "required" if field.is_required() else _as_yaml(field.get_default())
            yield f"{prefix}{name}", default, field.description or ""


def _as_yaml(value: Any) -> str:
    return yaml.safe_dump(list(value) if isinstance(value, tuple) else value, default_flow_style=True).split("\n")[0]


def _read_recipe(path: Path, seen: tuple[Path, ...]) -> tuple[dict[str, Any], dict[str, str]]:
    """One recipe over its base, with the line each value stands on."""
    path = path.resolve()
    if path in seen:
        chain = " -> ".join(p.name for p in (*seen, path))
        raise ConfigError(f"recipe {path.name} is its own base ({chain}); remove one `base:`")
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=_Loader)
        values, origins = _read_mapping(node, path)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date of a 13th month
        place = getattr(error, "problem_mark", None)
        line = f" at line {place.line + 1}" if place else ""
        raise ConfigError(
            f"recipe {path} is not readable YAML{line}: {getattr(error, 'problem', error)}; mend the file"
        ) from None
    base = values.pop("base", None)
    origins.pop("base", None)
    if base is not None:
        base_values, base_origins = _read_recipe(find_recipe(str(base), path.parent), (*seen, path))
        values = _merge(base_values, values)
        origins = {**base_origins, **origins}
    return values, origins


def _read_mapping(node: yaml.Node | None, path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"recipe {path} holds no settings; it should be a mapping of keys to values")
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    _collect(node, path.name, "", values, origins)
    return values, origins


def _collect(node: yaml.MappingNode, file: str, prefix: str, values: dict[str, Any], origins: dict[str, str]) -> None:
    loader = _Loader("")
    for key_node, value_node in node.value:
        key = str(loader.construct_object(key_node, deep=True))
        dotted = f"{prefix}{key}"
        if key in values:
            raise ConfigError(
                f"{file}:{key_node.start_mark.line + 1}: {dotted} is set a second time; keep one of the two"
            )
        if isinstance(value_node, yaml.MappingNode):
            values[key] = {}
            _collect(value_node, file, f"{dotted}.", values[key], origins)
        else:
            values[key] = loader.construct_object(value_node, deep=True)
        origins[dotted] = f"{file}:{key_node.start_mark.line + 1}"


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


def _override_value(key: str, text: str) -> Any:
    """What was typed after `key=`: read as YAML, but verbatim for a text setting, where 0123, on, # or 2026-01-01 mean themselves."""
    kind = _type_of(key)
    if kind in (str, str | None):
        return None if text in ("", "null", "~") and kind != str else text
    try:
        return yaml.load(text, _Loader) if text else None
    except (yaml.YAMLError, ValueError):
        return text


def _type_of(key: str) -> Any:
    """The declared type of a setting by its dotted name; None for one that is not declared."""
    section: Any = Config
    for name in key.split("."):
        fields = getattr(section, "model_fields", {})
        if name not in fields:
            return None
        section = fields[name].annotation
    return section


def _apply_override(override: str, values: dict[str, Any], origins: dict[str, str], problems: list[str]) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        problems.append(f"override {override!r} is not of the form key=value, e.g. optimizer.lr=3e-4")
        return
    *sections, last = key.split(".")
    place = values
    for section in sections:
        inner = place.setdefault(section, {})
        if not isinstance(inner, dict):
            problems.append(f"override {override!r}: {section} is a single setting and has no {last}")
            return
        place = inner
    place[last] = _override_value(key, text)
    origins[key] = "override"


def _explain(error: ValidationError, origins: dict[str, str]) -> list[str]:
    """Pydantic's findings as sentences: the dotted key with its place, what was expected, and the nearest name."""
    problems = []
    for found in error.errors():
        key = ".".join(str(part) for part in found["loc"] if not isinstance(part, int))
        place = f" ({origins[key]})" if key in origins else ""
        if found["type"] == "extra_forbidden":
            problems.append(f"unknown key {key}{place}; {_nearest_key(key)}")
        elif found["type"] == "missing" and isinstance(found["loc"][-1], int):
            problems.append(f"{key}{place} is {found['input']!r}, but should be a list with more values")
        elif found["type"] == "missing":
            problems.append(f"{key} is not set; a recipe must set it (or an override: {key}=...)")
        elif found["type"] == "model_type":
            elsewhere = "; what a run computes in is the cluster file's mixed_precision" if key == "precision" else ""
            problems.append(f"{key}{place} is {found['input']!r}, but should be a section with settings: {', '.join(_settings_of(key))}{elsewhere}")
        elif found["type"] == "value_error" and not found["loc"]:
            problems.extend(str(found["ctx"]["error"]).split("\n"))
        else:
            expected = found["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
            problems.append(f"{key}{place} is {found['input']!r}, but should be {expected}")
    return problems


def _contradictions_besides(error: ValidationError, values: dict[str, Any]) -> list[str]:
    """What else does not fit together once the settings that are wrong by themselves are left out; empty when that cannot be told."""
    remaining = copy.deepcopy(values)
    for found in error.errors():
        *sections, last = [part for part in found["loc"] if not isinstance(part, int)] or [None]
        place: Any = remaining
        for section in sections:
            place = place.get(section, {}) if isinstance(place, dict) else {}
        if not isinstance(place, dict) or place.pop(last, None) is None:
            return []
    try:
        Config.model_validate(remaining)
    except ValidationError as second:
        return _explain(second, {}) if all(not found["loc"] for found in second.errors()) else []
    return []


def _settings_of(section: str) -> list[str]:
    return [name.rpartition(".")[2] for name, _, _ in settings_help() if name.rpartition(".")[0] == section]


def _nearest_key(key: str) -> str:
    """Help after an unknown key: a sibling that is spelt alike, or the same last word in another section."""
    known = [name for name, _, _ in settings_help()]
    section, _, last = key.rpartition(".")
    siblings = _settings_of(section)
    sections = sorted({name.partition(".")[0] for name in known if "." in name})
    elsewhere = [name for name in known if name.rpartition(".")[2] == last]
    if elsewhere:
        return f"did you mean {elsewhere[0]}?"
    if close := nearest(last, siblings + (sections if not section else [])):
        return f"did you mean {section + '.' if section else ''}{close}?"
    return f"known {'in ' + section if section else 'at the top'} are: {', '.join(siblings or known)}"
