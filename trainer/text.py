"""Quantities and choices, written for people."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def count(number: float) -> str:
    """A count in three digits: 1.24e8 -> "124M"."""
    for limit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= 0.9995 * limit:  # below it three digits still suffice
            return f"{number / limit:.3g}{letter}"
    return f"{number:.3g}"


def numbered(number: int, noun: str) -> str:
    """A number with its noun: "1 process", "2 processes", "1,200 steps"."""
    return f"{number:,} {noun if number == 1 else noun + ('es' if noun.endswith('s') else 's')}"


def size(num_bytes: float) -> str:
    """Bytes with a decimal unit: 1487000000 -> "1.49 GB"."""
    for limit, unit in ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if num_bytes >= 0.9995 * limit:
            return f"{num_bytes / limit:.3g} {unit}"
    return f"{num_bytes:.0f} bytes"


SKEW_SECONDS = 60.0
"""Seconds by which two clocks may differ without a warning."""


def duration(seconds: float) -> str:
    """Seconds in the two largest units: 93784 -> "1d 2h"."""
    seconds = max(0.0, seconds)
    if seconds < 60:
        return f"{seconds:.3g}s" if seconds < 10 else f"{seconds:.0f}s"
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    if minutes < 60:
        return f"{minutes}m {int(seconds % 60)}s"
    if hours < 24:
        return f"{hours}h {minutes % 60}m"
    return f"{days}d {hours % 24}h"


def age(seconds: float) -> str:
    """An age: "3m 4s". What this clock has not reached yet, because it or the one that wrote the time is set wrong, is "in the future"."""
    return "in the future" if seconds <= -SKEW_SECONDS else duration(seconds)


def ago(seconds: float) -> str:
    """When something of this age was: "3m 4s ago"."""
    return age(seconds) if seconds <= -SKEW_SECONDS else f"{duration(seconds)} ago"


def printable(text: str) -> str:
    """A text that nobody vouches for as a terminal may show it: what would move the cursor or change colours becomes U+FFFD."""
    return "".join(character if character.isprintable() or character in "\n\t" else "\ufffd" for character in text)


def shortened(text: str, length: int = 100) -> str:
    """A text as one printable line of at most `length` characters, in quotes; an ellipsis stands for what is cut off."""
    line = printable(" ".join(text.split()))
    return f'"{line if len(line) <= length else line[: length - 3] + "..."}"'


def one_line(error: BaseException, max_characters: int = 200) -> str:
    """An exception in one line: its kind and the beginning of its words."""
    words = " ".join(str(error).split())[:max_characters]
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The known word a typing mistake most likely meant, or None."""
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.6)
    return close[0] if close else None


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """A clause that helps after an unknown name: the nearest known one, or the list of all."""
    words = sorted(words)
    guess = nearest(word, words)
    return f"did you mean {guess!r}?" if guess else f"known are: {', '.join(words)}"


def table(rows: Sequence[Sequence[object]], indent: str = "  ") -> str:
    """Rows of cells as aligned columns; a column of numbers is set to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    numeric = [all(row[i][:1].isdigit() or row[i][:1] in "-" for row in cells[1:]) for i in range(len(widths))]
    align = [str.rjust if is_number else str.ljust for is_number in numeric]
    return "\n".join(indent + "  ".join(f(cell, w) for f, cell, w in zip(align, row, widths)).rstrip() for row in cells)


def by_dotted_name(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one: {"a": {"b": 1}} -> {"a.b": 1}; an empty mapping stays a value."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= by_dotted_name(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def few(names: Sequence[str], most: int = 4) -> str:
    """Dotted names in few words: those that differ in their numbers as one, and how many more there are.

    >>> few(["embed.weight", "layers.0.up.weight", "layers.1.up.weight"])
    'embed.weight, layers.*.up.weight (2)'
    """
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", name), []).append(name)
    shown = [own[0] if len(own) == 1 else f"{name} ({len(own)})" for name, own in alike.items()]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")
