"""The progress bar on a terminal; plain lines elsewhere. Log lines scroll above the bar."""

import logging
import sys
import time
from dataclasses import dataclass, replace

from rich.console import Console
from rich.live import Live
from rich.text import Text

from trainer.text import count, duration

log = logging.getLogger(__name__)

CONSOLE = Console(stderr=True, highlight=False)

REFRESH_HZ = 2
_MIN_BAR, _MAX_BAR = 8, 40
_WEEK_SECONDS = 6 * 86400
"""From here on a weekday alone would not say which."""


def console_handler() -> logging.Handler:
    """A handler that writes to standard error: above the bar on a terminal, as plain lines elsewhere."""
    return TerminalHandler(CONSOLE) if CONSOLE.is_terminal else logging.StreamHandler(sys.stderr)


class TerminalHandler(logging.Handler):
    """Writes each message whole, as one line that the terminal wraps; what one should look at has a colour."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        style = "bold red" if record.levelno >= logging.ERROR else "yellow" if record.levelno >= logging.WARNING else ""
        try:
            self._console.print(Text(self.format(record), style=style), soft_wrap=True)
        except OSError:
            self.handleError(record)


@dataclass(frozen=True, slots=True)
class Standing:
    """What the bar knows; times are seconds of a clock that nobody sets, None is what is not known."""

    step: int
    max_steps: int
    loss: float | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None
    ends_at: float | None = None
    saved_at: float | None = None
    busy: str | None = None
    """What goes on when it is not a step."""
    busy_since: float = 0.0


def bar_line(standing: Standing, width: int, now: float, clock: float, *, ascii_only: bool = False) -> Text:
    """The bar as one line of at most `width` columns: what there is no room for is left out, the least needed first.

    now, clock  the time of the clock that nobody sets, and that of the one on the wall
    """
    parts = _parts(standing, now, clock)
    room, kept = width, dict[str, str]()
    for name in ("step", "busy", "loss", "left", "speed", "bar", "percent", "ends", "saved", "mfu"):
        needed = _MIN_BAR if name == "bar" else len(parts.get(name, ""))
        gap = 2 if kept else 0
        if needed and needed + gap <= room:
            kept[name], room = parts.get(name, ""), room - needed - gap
    line = Text(no_wrap=True, overflow="crop")
    for name in ("step", "bar", "percent", "loss", "speed", "mfu", "left", "ends", "saved", "busy"):
        if name in kept:
            line.append("  " if line else "")
            if name == "bar":
                _append_bar(line, standing.step / standing.max_steps, min(_MIN_BAR + room, _MAX_BAR), ascii_only)
            else:
                line.append(kept[name], style="bold" if name == "busy" else "")
    line.truncate(width)
    return line


def _parts(standing: Standing, now: float, clock: float) -> dict[str, str]:
    """What is known, as words."""
    known = {
        "step": f"step {standing.step}/{standing.max_steps}",
        "percent": f"{standing.step / standing.max_steps:.1%}",
        "loss": standing.loss is not None and f"loss {standing.loss:.4f}",
        "speed": standing.tokens_per_second is not None and f"{count(standing.tokens_per_second)} tokens/s",
        "mfu": standing.mfu is not None and f"mfu {standing.mfu:.1%}",
        "left": standing.ends_at is not None and f"{duration(int(standing.ends_at - now))} left",
        "ends": standing.ends_at is not None and f"ends {clock_time(clock + standing.ends_at - now, clock)}",
        "saved": standing.saved_at is not None and f"saved {duration(int(now - standing.saved_at))} ago",
        "busy": standing.busy and f"{standing.busy} {duration(int(now - standing.busy_since))}",
    }
    return {name: words for name, words in known.items() if words}


def clock_time(moment: float, now: float) -> str:
    """When that is, on the clock of this place: "Fri 14:20", or with its date where it is a week away."""
    return time.strftime("%a %H:%M" if moment - now < _WEEK_SECONDS else "%d %b %H:%M", time.localtime(moment))


def _append_bar(line: Text, fraction: float, width: int, ascii_only: bool) -> None:
    full, rest = ("#", ".") if ascii_only else ("\u2501", "\u2500")
    done = round(width * min(fraction, 1.0))
    line.append(full * done, style="bar.complete").append(rest * (width - done), style="bar.back")


class ProgressBar:
    """One line that says how far, how well, how fast and how much longer; nothing where there is no terminal.

    A thread draws it twice a second; the calls only note what it shall say.
    """

    def __init__(self, max_steps: int, console: Console = CONSOLE) -> None:
        self._max_steps, self._console = max_steps, console
        self._saved_at: float | None = None
        self._standing = Standing(0, max_steps, busy="starting", busy_since=time.monotonic())
        self._live: Live | None = None
        if console.is_terminal:
            self._live = Live(console=console, transient=True, refresh_per_second=REFRESH_HZ, get_renderable=self._line)
            self._live.start()

    def update(
        self,
        step: int,
        *,
        loss: float | None = None,
        tokens_per_second: float | None = None,
        mfu: float | None = None,
        seconds_left: float | None = None,
    ) -> None:
        """A step was taken: nothing else goes on any more."""
        ends_at = None if seconds_left is None else time.monotonic() + seconds_left
        self._standing = Standing(step, self._max_steps, loss, tokens_per_second, mfu, ends_at, self._saved_at)

    def busy(self, what: str) -> None:
        """Says what goes on until the next step: `evaluating`, `sampling`, `saving`, `profiling`."""
        self._standing = replace(self._standing, busy=what, busy_since=time.monotonic())

    def saved(self) -> None:
        """A checkpoint is on the disk, as of now."""
        self._saved_at = time.monotonic()
        self._standing = replace(self._standing, saved_at=self._saved_at)

    def close(self) -> None:
        """Takes the line away."""
        live, self._live = self._live, None
        if live is None:
            return
        try:
            live.stop()
        except OSError as error:
            log.warning("the terminal is gone (%s); train.log has everything", error.strerror)

    def draw(self) -> None:
        """Draws the newest line now, where there is a terminal; else it is drawn every so often."""
        if self._live:
            self._live.refresh()

    def _line(self) -> Text:
        ascii_only = not self._console.encoding.startswith("utf")
        # A column is left free: a terminal that is full to the last one may wrap.
        width = self._console.width - 1
        return bar_line(self._standing, width, time.monotonic(), time.time(), ascii_only=ascii_only)
