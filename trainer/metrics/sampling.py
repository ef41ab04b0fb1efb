"""What changes without the run's doing is read every few seconds, on a thread of its own, and stands in the record of the next step."""

import logging
import threading
from collections.abc import Callable, Mapping

from trainer.text import one_line

log = logging.getLogger(__name__)

SAMPLE_SECONDS = 10.0
"""How often the machine is looked at."""


class Sampling:
    """Samples until it is closed; a sample that hangs (a driver, a network disk) holds nobody up."""

    def __init__(self, sample: Callable[[], Mapping[str, float]], seconds: float = SAMPLE_SECONDS) -> None:
        self._sample, self._seconds = sample, seconds
        self._newest: Mapping[str, float] = {}
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._go_on, name="sampling", daemon=True)

    def start(self) -> None:
        """Takes the first sample now."""
        self._thread.start()

    def take(self) -> Mapping[str, float]:
        """The newest sample by tag, once; nothing when there is none since the last call."""
        newest, self._newest = self._newest, {}
        return newest

    def close(self) -> None:
        self._ending.set()

    def wait(self, seconds: float) -> bool:
        """Waits for the last sample; whether it has come within so many seconds."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _go_on(self) -> None:
        while True:
            try:
                self._newest = self._sample()
            except Exception as error:
                log.warning("the machine is not looked at any more (%s); training goes on", one_line(error, 1000))
                return
            if self._ending.wait(self._seconds):
                return
