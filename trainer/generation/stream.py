"""Text as it comes: whole characters only, up to a stop text, and one row after the other though many are written at once."""

import codecs
from collections.abc import Callable, Sequence


class TextStream:
    """The text of one row, from the bytes of its tokens.

    What `feed` gives is final: a character is given once all its bytes are there, and what may be the beginning of a stop text once it
    is known not to be. The pieces together are what decoding all bytes at once would give (U+FFFD for what is not UTF-8), cut before the first stop text.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        assert all(stops), "an empty text would stop everything"
        self._stops = stops
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.is_stopped = False

    def feed(self, data: bytes) -> str:
        """Takes the next bytes and gives the text that is certain by now."""
        return self._certain(self._decoder.decode(data))

    def end(self) -> str:
        """The rest, when no more bytes come: a character that is not whole becomes U+FFFD."""
        rest = self._certain(self._decoder.decode(b"", final=True)) + self._held
        self._held = ""
        return rest

    def _certain(self, text: str) -> str:
        if self.is_stopped:
            return ""
        text = self._held + text
        if places := [place for stop in self._stops if (place := text.find(stop)) >= 0]:
            self.is_stopped, self._held = True, ""
            return text[: min(places)]
        num_held = max((_beginning_at_end(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]


def _beginning_at_end(text: str, stop: str) -> int:
    """How many characters at the end of `text` are the beginning of `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


class InOrder:
    """Shows what comes for many rows at once as if they came one after the other: the first that goes on as it comes, the others once it is their turn."""

    def __init__(self, show: Callable[[int, str], None], close: Callable[[int], None]) -> None:
        """`show(row, text)` is called with pieces of text, then `close(row)` once, for row 0, then row 1, and so on."""
        self._show, self._close = show, close
        self._row = 0
        self._waiting: dict[int, list[str]] = {}
        self._ended: set[int] = set()

    def write(self, row: int, text: str) -> None:
        """Takes a piece of a row's text."""
        if not text:
            return
        if row == self._row:
            self._show(row, text)
        else:
            self._waiting.setdefault(row, []).append(text)

    def end(self, row: int) -> None:
        """Takes note that no more comes for a row."""
        self._ended.add(row)
        while self._row in self._ended:
            self._close(self._row)
            self._row += 1
            if text := "".join(self._waiting.pop(self._row, [])):
                self._show(self._row, text)
