"""The task that comes with the package: which line of Twelfth Night follows, out of four of that play.

The play is the one that the embedded corpus holds out. The questions are made of it when they are asked for, so its text is in the
package once. Each is a place in the play, the places spread evenly over it:

    context   the lines before it within its scene, as many whole ones as fit CONTEXT_CHARACTERS
    choices   the true line and three from other scenes of nearly its length, in an order that is drawn

Asked for are lines of speech, but not the first of one: it says less of what came before. What is drawn is drawn by a hash
of place and text, so the questions are the same everywhere and for ever.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.evaluation.items import Item

NAME = "shakespeare_lines"
NUM_ITEMS = 300
NUM_CHOICES = 4
CONTEXT_CHARACTERS = 120
MIN_CHARACTERS = 25
MAX_DIFFERENCE = 3
"""Characters by which a wrong line may be shorter or longer than the true one."""

_SPEAKER = re.compile(r"[A-Z][A-Z. ]+\.")
_NO_SPEECH = re.compile(r"^\s|[\[\]]")
"""Lines of songs, which are set in, and stage directions."""


@dataclass(frozen=True)
class _Place:
    """A line within a speech, and where it stands."""

    scene: int
    line: int
    text: str


def next_line_items(scenes: Sequence[str]) -> tuple[Item, ...]:
    """The questions, from the scenes of one play in their order; the same scenes always give the same questions."""
    lines = [scene.split("\n") for scene in scenes]
    places = [place for number, scene in enumerate(lines) for place in _places(number, scene)]
    asked = [places[len(places) * number // NUM_ITEMS] for number in range(NUM_ITEMS)]
    return tuple(_item(place, lines[place.scene], places) for place in asked)


def _places(number: int, scene: list[str]) -> list[_Place]:
    """The lines of a scene that may be asked for: those of a speech but its first, long enough, and none of a song."""
    places, is_speech, is_first = [], False, False
    for line, text in enumerate(scene):
        if _SPEAKER.fullmatch(text):
            is_speech, is_first = True, True
            continue
        is_speech = is_speech and bool(text)
        if is_speech and not is_first and len(text) >= MIN_CHARACTERS and not _NO_SPEECH.search(text):
            places.append(_Place(number, line, text))
        is_first = False
    return places


def _item(place: _Place, scene: list[str], places: list[_Place]) -> Item:
    key = f"{place.scene}:{place.line}"
    elsewhere = {other.text for other in places if other.scene != place.scene} - {place.text}
    others = [text for text in elsewhere if abs(len(text) - len(place.text)) <= MAX_DIFFERENCE]
    wrong = sorted(others, key=lambda text: _drawn(key, text))[: NUM_CHOICES - 1]
    assert len(wrong) == NUM_CHOICES - 1, f"too few lines are as long as that at {key}"
    choices = sorted((place.text, *wrong), key=lambda text: _drawn(f"order of {key}", text))
    context = _context(scene[: place.line])
    # A line follows the end of the one before it, so here the two are not parted by a space.
    pairs = tuple((context, f"\n{text}") for text in choices)
    where = f"{NAME}, scene {place.scene}, line {place.line + 1}"
    return Item(where, pairs, choices.index(place.text), tuple(map(len, choices)))


def _context(before: list[str]) -> str:
    """The last lines that fit together, and at least one."""
    first = len(before) - 1
    while first > 0 and sum(len(line) + 1 for line in before[first - 1 :]) <= CONTEXT_CHARACTERS:
        first -= 1
    return "\n".join(before[first:]).lstrip("\n")


def _drawn(key: str, text: str) -> bytes:
    return hashlib.sha256(f"{key} {text}".encode()).digest()
