"""What the schema says of each setting, by its dotted name: its type, its default and its words."""

from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from trainer.aliases import SETTINGS
from trainer.config.plain import Kind
from trainer.config.schema import Config
from trainer.text import nearest


def settings_help() -> list[tuple[str, str, str]]:
    """(dotted name, default, help) of every setting, from the schema's own words."""
    return [(name, _default_words(field), field.description or "") for name, field in fields_of()]


def fields_of(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """(dotted name, what the schema says of it) of every setting, in the schema's order."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields_of(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def plain(value: Any) -> Any:
    """A setting's value as YAML has it: a list for a tuple, a mapping for a section in a list."""
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def settings_table() -> str:
    """All settings as the Markdown table of trainer/guides/settings.md."""
    rows = [("setting", "default", "meaning"), ("---", "---", "---")]
    for name, default, words in settings_help():
        rows.append((f"`{name}`", default if default == "required" else f"`{default}`", words))
    cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _default_words(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return yaml.safe_dump(plain(field.get_default()), default_flow_style=True).split("\n")[0]


def type_of(key: str) -> Any:
    """The declared type of a setting by its dotted name or a former one; None for one that is not declared."""
    section: Any = Config
    for name in SETTINGS.get(key, key).split("."):
        fields = getattr(section, "model_fields", {})
        if name not in fields:
            return None
        section = fields[name].annotation
    return section


def kind_of(key: str) -> Kind:
    """Whether a setting takes a number, a text, or something in which yes and no are themselves; `base` names a recipe."""
    taken = {str} if key == "base" else _leaves(type_of(key))
    if bool in taken or Any in taken:
        return "any"
    return "number" if taken & {int, float} else "text" if str in taken else "any"


def _leaves(annotation: Any) -> set[Any]:
    """The types of the single values that an annotation allows; a literal counts as a text."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _leaves(parts[0])
    if origin is Literal:
        return {str}
    if origin is dict:
        return {Any}
    if origin in (Union, UnionType, list, tuple):
        return set().union(*map(_leaves, parts))
    return {annotation}


def settings_of(section: str) -> list[str]:
    """The last words of a section's settings; those at the top for an empty name; those of an item, for a list of sections."""
    own = [name.rpartition(".")[2] for name, _, _ in settings_help() if name.rpartition(".")[0] == section]
    items = get_args(type_of(section))[:1] if section else ()
    return own or [name for item in items for name in getattr(item, "model_fields", {})]


def nearest_key(key: str) -> str:
    """Help after an unknown key: a sibling that is spelt alike, or the same last word in another section."""
    known = [name for name, _, _ in settings_help()]
    section, _, last = key.rpartition(".")
    siblings = settings_of(section)
    sections = sorted({name.partition(".")[0] for name in known if "." in name})
    elsewhere = [name for name in known if name.rpartition(".")[2] == last]
    if elsewhere:
        return f"did you mean {elsewhere[0]}?"
    if close := nearest(last, siblings + (sections if not section else [])):
        return f"did you mean {section + '.' if section else ''}{close}?"
    if section and not siblings:
        return f"known sections are: {', '.join(sections)}"
    return f"known {'in ' + section if section else 'at the top'} are: {', '.join(siblings)}"
