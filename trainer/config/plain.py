"""YAML with the place of every key: what recipes and cluster files share. PyYAML reads both, as Accelerate reads the cluster file with it.

YAML 1.1 makes other values of some plain words: yes becomes true, 0100 becomes 64, 1:30 becomes 90. Where a setting wants a number or a
text, such a word is refused with both readings; a text in quotes means itself.
"""

import datetime
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from trainer.errors import ConfigError

Kind = Literal["number", "text", "any"]
"""What a setting takes: a number, a text, or something in which yes and no are themselves."""


class Loader(yaml.SafeLoader):
    """YAML that reads 1e6 and 6e-4 as the numbers they are; PyYAML's own rules want a point and a sign in them."""


class Dumper(yaml.SafeDumper):
    """Writes what `Loader` reads back: text that looks like such a number goes into quotes."""


for _class in (Loader, Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )


@dataclass(frozen=True)
class Document:
    """A mapping that was read, with the place of each key by its dotted name, and what is wrong with its words."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    """Dotted key -> `file:line`."""
    problems: dict[str, str] = field(default_factory=dict)
    """Dotted key -> a sentence on what is wrong with its words."""
    old_names: dict[str, str] = field(default_factory=dict)
    """Dotted key of an earlier version that it was written with -> `file:line`."""


def read_document(
    path: Path,
    what: str,
    kind_of: Callable[[str], Kind],
    loader: type[yaml.SafeLoader] = Loader,
    remedy: str = "fix the file",
) -> Document:
    """Reads a file that holds a mapping.

    what      what the file is, for a person: `recipe mine.yaml`
    kind_of   what the setting of a dotted name takes
    remedy    what to do about a file that cannot be read
    raises    ConfigError when it cannot be read, or is no YAML, or no mapping, or sets a key twice
    """
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=loader)
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{what} holds no settings; it should be a mapping of keys to values")
        yaml.load(text, loader)  # as Accelerate does: a key that is no word, or a merge of what is no mapping, ends it
        document = Document()
        _collect(node, path.name, "", document, kind_of, loader(""))
    except OSError as error:
        raise ConfigError(f"{what} cannot be read ({error.strerror}); fix the rights on it, or that disk") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, or a date of a 13th month
        place = getattr(error, "problem_mark", None)
        line = f" at line {place.line + 1}" if place else ""
        cause = getattr(error, "problem", None) or " ".join(str(error).split())
        raise ConfigError(f"{what} is not readable YAML{line}: {cause}; {remedy}") from None
    return document


def _collect(
    node: yaml.MappingNode,
    file: str,
    prefix: str,
    document: Document,
    kind_of: Callable[[str], Kind],
    loader: yaml.SafeLoader,
    into: dict[str, Any] | None = None,
) -> None:
    """Adds the entries of a mapping, and of the mappings in it, to a document; keys are taken as they are written."""
    values = document.values if into is None else into
    for key_node, value_node in node.value:
        is_word = isinstance(key_node, yaml.ScalarNode)
        key = key_node.value if is_word else str(loader.construct_object(key_node, deep=True))
        dotted, place = f"{prefix}{key}", f"{file}:{key_node.start_mark.line + 1}"
        if key in values:
            raise ConfigError(f"{place}: {dotted} is set a second time; keep one of the two")
        if isinstance(value_node, yaml.MappingNode):
            values[key] = {}
            _collect(value_node, file, f"{dotted}.", document, kind_of, loader, values[key])
        else:
            values[key] = loader.construct_object(value_node, deep=True)
            if readings := both_readings(value_node, kind_of(dotted), loader):
                document.problems[dotted] = f"{dotted} ({place}) is {readings}"
        document.places[dotted] = place


def both_readings(node: yaml.Node, kind: Kind, loader: yaml.SafeLoader) -> str | None:
    """The first word of a value that YAML takes for something else than a person may mean by it, with both readings; None without one.

    >>> both_readings(yaml.compose("0100"), "number", Loader(""))
    '0100, which YAML reads as 64 (octal), and which may be meant as 100; write the number that is meant'
    """
    for scalar in _plain_scalars(node):
        text, value = scalar.value, loader.construct_object(scalar, deep=True)
        if readings := _readings(text, value, kind):
            by_yaml, by_person = readings
            meant = "the number" if kind == "number" else "the one"
            quotes = "" if kind == "number" else ", a text within quotes"
            return f"{text}, which YAML reads as {by_yaml}, and which may be meant as {by_person}; write {meant} that is meant{quotes}"
    return None


def _readings(text: str, value: Any, kind: Kind) -> tuple[str, str] | None:
    """What YAML and what a person reads in a plain word; None where they read the same."""
    as_text = f"the text '{text}'"
    if isinstance(value, datetime.date):
        return f"the date {value}", as_text
    if isinstance(value, bool):
        number = f" ({int(value)} as a number)" if kind == "number" else ""
        return None if kind == "any" else (f"{str(value).lower()}{number}", f"the word '{text}'")
    if not isinstance(value, (int, float)):
        return None
    if ":" in text:
        return f"{value} (base 60)", as_text
    if re.fullmatch(r"[-+]?0[0-7_]+", text) and (decimal := int(text.replace("_", ""))) != value:
        return f"{value} (octal)", as_text if kind == "text" else str(decimal)
    return (f"the number {value}", as_text) if kind == "text" and str(value) != text else None


def _plain_scalars(node: yaml.Node | None) -> Iterator[yaml.ScalarNode]:
    """The words without quotes of a value, at any depth."""
    if isinstance(node, yaml.ScalarNode):
        if not node.style:
            yield node
    elif isinstance(node, yaml.SequenceNode):
        for part in node.value:
            yield from _plain_scalars(part)
    elif isinstance(node, yaml.MappingNode):
        for _, part in node.value:
            yield from _plain_scalars(part)
