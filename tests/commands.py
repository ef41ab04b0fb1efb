"""Types a command: what `trainer ...` does in this process, with what it said and how it ended."""

import contextlib
import io
import sys
from dataclasses import dataclass
from unittest import mock

from trainer.cli import main


@dataclass(frozen=True)
class Said:
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str


def trainer(*words: str) -> Said:
    """Runs `trainer WORDS...`; anything but an exit is a traceback that a person would have seen, and is raised."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["trainer", *words]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
    return Said(code, out.getvalue(), err.getvalue())


def paragraph(text: str) -> str:
    """The one paragraph that begins with `error:` and is the last thing said; asserts that it is that."""
    lines = text.rstrip("\n").split("\n")
    begins = [number for number, line in enumerate(lines) if line.startswith("error:")]
    assert len(begins) == 1, f"one paragraph was expected:\n{text}"
    found = lines[begins[0] :]
    assert all(found), f"a paragraph has no empty line:\n{text}"
    assert "Traceback" not in text, text
    return "\n".join(found)
