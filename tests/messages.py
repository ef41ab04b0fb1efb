"""What tests ask of a message: that it names the value and the remedy, in whatever words and order.

A token is what stays when a sentence is written anew: a key, a value, a path, a command, an option, a technical noun.
Tokens are whole words: "8" is not found in "18", "8.5" or "8,000", and `lr` not in `optimizer.lr2`.
"""

import contextlib
import re
from collections.abc import Iterator

import pytest


def missing(said: object, *tokens: object) -> list[str]:
    """The tokens that a message does not name; where its lines are broken does not count."""
    text = " ".join(str(said).split())
    return [str(token) for token in tokens if not _pattern(str(token)).search(text)]


def names(said: object, *tokens: object) -> bool:
    """Whether a message names all of these."""
    return not missing(said, *tokens)


def says(said: object, *tokens: object) -> None:
    """Asserts that a message names all of these."""
    __tracebackhide__ = True
    absent = missing(said, *tokens)
    assert not absent, f"{', '.join(absent)} should be named in:\n{said}"


@contextlib.contextmanager
def refuses(error: type[BaseException], *tokens: object) -> Iterator[pytest.ExceptionInfo]:
    """As pytest.raises: asserts that this error is raised, and that its message names all of the tokens."""
    __tracebackhide__ = True
    with pytest.raises(error) as caught:
        yield caught
    says(caught.value, *tokens)


def line_of(text: str, *tokens: object) -> str:
    """The first line of a text that names all of these; fails where there is none."""
    __tracebackhide__ = True
    found = [each for each in text.splitlines() if names(each, *tokens)]
    assert found, f"{', '.join(map(str, tokens))} should be named in one line of:\n{text}"
    return found[0]


def logged(caplog: pytest.LogCaptureFixture, *tokens: object) -> str:
    """The first logged message that names all of these; fails where there is none."""
    __tracebackhide__ = True
    found = [each for each in caplog.messages if names(each, *tokens)]
    assert found, f"{', '.join(map(str, tokens))} should be named in one message of:\n{caplog.text}"
    return found[0]


def _pattern(token: str) -> re.Pattern[str]:
    token = " ".join(token.split())
    before = r"(?<!\w)(?<!\d[.,])" if token[:1].isdigit() else r"(?<!\w)" if token[:1].isalnum() else ""
    after = r"(?!\w|[.,]\d)" if token[-1:].isdigit() else r"(?!\w)" if token[-1:].isalnum() else ""
    return re.compile(before + re.escape(token) + after)


# The form that every error has

ADVICE = re.compile(
    r"(and |or |then |please )*[`']?"
    r"(add|ask|choose|compute|copy|did|end|evaluate|fix|free|give|install|is|known|keep|leaves?|let|look|lower|make|mend|move"
    r"|name|put|raise|read|remove|rename|resume|restart|restore|say|see|set|shorten|start|stop|take|train|try|unset|update"
    r"|use|wait|write)\b",
    re.IGNORECASE,
)
"""How a clause begins that says what to do, or what was expected: `give another name`, `did you mean 'tiny'?`, `known are: ...`."""

EXPECTED = re.compile(r"should be|(was|were) expected|must |needs |nearest: |of the form |each line is |has at least ")
"""How what was expected is said, where nothing else is left to advise."""


def form_faults(message: str) -> list[str]:
    """What a message lacks of the form of an error: one paragraph that says what is wrong, and then what to do."""
    faults = []
    if "\n" in message or "  " in message or message != message.strip():
        faults.append("it is not one paragraph")
    clauses = re.split(r"[;:.,?] | \(", message)
    if not any(ADVICE.match(clause) for clause in clauses[1:]) and not EXPECTED.search(message):
        faults.append("it says neither what to do nor what was expected")
    return faults
