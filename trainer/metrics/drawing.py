"""The thread that draws: trackers, and the index, follow metrics.jsonl beside training, which never waits for them.

Training appends a record to the curve and goes on; a few times a second this thread hands each tracker the records it has not drawn yet.
What is not finite (text, histograms) comes through a queue.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from torch.utils.tensorboard import SummaryWriter

from trainer.metrics.failures import CountedFailures
from trainer.metrics.histograms import Histogram
from trainer.metrics.index import CurveIndex
from trainer.metrics.trackers import PatientTracker

log = logging.getLogger(__name__)

ROUND_SECONDS = 0.25
"""How often new records are drawn: rarely enough to take the interpreter from training only in short, whole rounds."""

LONGEST_END_SECONDS = 30.0
"""How long the end of a run waits for the last of them; the next start draws what is missing then."""

MAX_EXTRAS = 200
"""Texts and histograms that may wait for a TensorBoard that is paused; the oldest beyond go, and that is counted."""


class Drawing:
    """The trackers of a run, what else follows its curve, and the thread that hands them what is new."""

    def __init__(self, trackers: Sequence[PatientTracker | CurveIndex], failures: CountedFailures) -> None:
        self._trackers, self._failures = trackers, failures
        self._board = next((tracker for tracker in trackers if tracker.writer is not None), None)
        self._extras: deque[tuple[int, Callable[[], Callable[[SummaryWriter], object]]]] = deque()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._draw_on, name="drawing", daemon=True)
        if trackers:
            self._thread.start()

    def text(self, tag: str, markdown: str, step: int) -> None:
        """Draws a text in TensorBoard."""
        self.add(step, lambda writer: writer.add_text(tag, markdown, step))

    def histograms(self, step: int, count: Callable[[], Mapping[str, Histogram]]) -> None:
        """Draws histograms by tag in TensorBoard; `count` makes them, on the drawing thread."""

        def prepare() -> Callable[[SummaryWriter], object]:
            histograms = count()

            def write(writer: SummaryWriter) -> None:
                for tag, histogram in histograms.items():
                    writer.add_histogram_raw(tag, **vars(histogram), global_step=step)

            return write

        self._add(step, prepare)

    def add(self, step: int, write: Callable[[SummaryWriter], object]) -> None:
        """Lets `write` write anything of this step into TensorBoard, on the drawing thread."""
        self._add(step, lambda: write)

    def _add(self, step: int, prepare: Callable[[], Callable[[SummaryWriter], object]]) -> None:
        """`prepare` does what has nothing to do with TensorBoard, which is not paused when that fails; what it returns writes."""
        if self._board is None:
            return
        self._extras.append((step, prepare))
        if len(self._extras) > MAX_EXTRAS:
            self._extras.popleft()
            self._failures.tell(
                self._board.name, BufferError("too many texts and histograms are waiting, the oldest is left out")
            )

    def close(self) -> None:
        """Draws what is left and ends the trackers; one that hangs is left behind and logged."""
        self._ending.set()
        if self._thread.ident is None:
            return
        self._thread.join(LONGEST_END_SECONDS)
        if self._thread.is_alive():
            log.warning(
                "%s: still writing after %.0f s, so its last points are missing; the next start of the run draws them",
                ", ".join(tracker.name for tracker in self._trackers),
                LONGEST_END_SECONDS,
            )

    def _draw_on(self) -> None:
        while not self._ending.wait(ROUND_SECONDS):
            self._draw()
        self._draw()
        for tracker in self._trackers:
            self._failures.guard(tracker.name, tracker.close, Exception)

    def _draw(self) -> None:
        # The settings first: once a number is drawn, the next launch takes them for drawn too.
        while self._extras and self._board and not self._board.is_paused:
            self._failures.guard(self._board.name, self._draw_extra, Exception)
        for tracker in self._trackers:
            self._failures.guard(tracker.name, tracker.draw, Exception)

    def _draw_extra(self) -> None:
        board, (step, prepare) = self._board, self._extras.popleft()
        assert board is not None, "what is drawn there was only taken where there is one"
        write = prepare()

        def draw() -> None:
            writer = board.writer
            assert writer is not None, "an open board has one"
            write(writer)
            writer.flush()

        board.attempt(step, draw)
