"""A command's standard streams: there in any case, able to show any text, and no reason why finished work counts as failed.

answer  prints what a command was asked for; where that cannot be written, the command has failed (`Unheard`)
tell    prints on standard output what came of work that is done: where nobody hears it, it is done all the same
say     prints on standard error what goes on or went wrong; it never fails
"""

import errno
import io
import os
import signal
import sys
from typing import Any, TextIO


class Unheard(Exception):
    """Standard output does not take what was written to it: its reader has gone, or its disk is full or broken.

    No OSError, which typer and rich would make an end of their own.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(error.strerror)
        self.errno, self.reason = error.errno, error.strerror or type(error).__name__

    @property
    def exit_code(self) -> int:
        """128 + SIGPIPE where the reader has gone, as of a command that the signal ends; else 1."""
        return 128 + signal.SIGPIPE if self.errno == errno.EPIPE else 1


class _Standard(io.TextIOWrapper):
    """Standard output or error; what its encoding cannot say is written as an escape, e.g. \\xe9.

    With `must_be_heard` a failed write or flush is `Unheard`, without it the text is dropped.
    """

    must_be_heard = False

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._fail(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        if self.must_be_heard:
            raise Unheard(error) from None


def make_ready() -> None:
    """Gives this process all three streams; call it before anything is printed or opened.

    A closed one (`>&-`) becomes /dev/null, for its number would go to the next file that is opened, and what is printed into that.
    """
    _fill_closed_descriptors()
    sys.stdin = sys.stdin or open(0, encoding="utf-8", errors="replace")
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = _standard(getattr(sys, name), descriptor)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)  # the interpreter flushes this one at its end
    _demand(True)


def need_not_be_heard() -> None:
    """From here on nothing that is printed on standard output can fail: for a process of a run, whose work is another."""
    _demand(False)


def answer(text: str) -> None:
    """Prints what the command was asked for; raises Unheard where it cannot be written."""
    print(text, flush=True)


def tell(text: str) -> None:
    """Prints what came of work that is done; where standard output takes nothing, that is printed on standard error."""
    try:
        answer(text)
    except Unheard as error:
        give_up(sys.stdout)
        if error.errno != errno.EPIPE:
            say(f"what came of it could not be written to standard output ({error.reason})")


def say(text: str, end: str = "\n") -> None:
    """Prints on standard error while something goes on."""
    print(text, end=end, file=sys.stderr, flush=True)


def settle() -> None:
    """Writes out what both streams still hold, so that the interpreter's own attempt at its end cannot change the exit code.

    raises  Unheard when standard output was to be heard and is not
    """
    for stream in (sys.stderr, sys.stdout):
        if not isinstance(stream, _Standard):  # somebody else's, as in a test
            continue
        must_be_heard, stream.must_be_heard = stream.must_be_heard, True
        try:
            stream.flush()
        except Unheard:
            give_up(stream)
            if must_be_heard:
                raise
        finally:
            stream.must_be_heard = must_be_heard


def give_up(stream: TextIO) -> None:
    """Lets everything that is still written to a stream vanish."""
    if isinstance(stream, _Standard):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _demand(must_be_heard: bool) -> None:
    if isinstance(sys.stdout, _Standard):
        sys.stdout.must_be_heard = must_be_heard


def _fill_closed_descriptors() -> None:
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
            os.set_inheritable(opened, True)


def _standard(stream: Any, descriptor: int) -> Any:
    if stream is None:
        return _Standard(open(descriptor, "wb"), encoding="utf-8", errors="backslashreplace", line_buffering=True)
    if isinstance(stream, _Standard) or not isinstance(stream, io.TextIOWrapper):
        return stream
    encoding, by_line, at_once = stream.encoding, stream.line_buffering, stream.write_through
    buffer = stream.detach()
    return _Standard(buffer, encoding, "backslashreplace", line_buffering=by_line, write_through=at_once)
