"""The progress bar on a terminal; plain lines elsewhere. Log lines scroll above the bar."""

import logging
import sys

from rich.console import Console
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TextColumn

_CONSOLE = Console(file=sys.stderr, highlight=False, soft_wrap=True)


def console_handler() -> logging.Handler:
    """A handler that writes to standard error: beside the bar on a terminal, as plain lines elsewhere."""
    if not _CONSOLE.is_terminal:
        return logging.StreamHandler(sys.stderr)
    return RichHandler(
        console=_CONSOLE,
        show_path=False,
        show_level=False,
        show_time=False,
        markup=False,
        highlighter=NullHighlighter(),
    )


class ProgressBar:
    """One line that says how far, how well, how fast and how much longer; nothing where there is no terminal."""

    def __init__(self, max_steps: int) -> None:
        self._progress: Progress | None = None
        if _CONSOLE.is_terminal:
            columns = (
                TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
                BarColumn(),
                TextColumn("{task.fields[text]}"),
            )
            self._progress = Progress(*columns, console=_CONSOLE, transient=True, refresh_per_second=4)
            self._task = self._progress.add_task("", total=max_steps, text="starting")
            self._progress.start()

    def update(self, step: int, text: str) -> None:
        """Moves the bar to `step` and shows `text` beside it."""
        if self._progress:
            self._progress.update(self._task, completed=step, text=text)

    def close(self) -> None:
        if self._progress:
            self._progress.stop()
            self._progress = None
