"""Failed writes of what a run can do without: counted and logged ever more rarely; they never end it."""

import logging
from collections.abc import Callable

log = logging.getLogger(__name__)


class CountedFailures:
    """Counts the failures of one launch and logs the 1st, 2nd, 4th, 8th ..., so that a month of them does not fill the log."""

    def __init__(self) -> None:
        self.count = 0

    def tell(self, what: str, error: BaseException) -> None:
        """Counts one failure of `what`."""
        self.count += 1
        if self.count & (self.count - 1) == 0:
            log.warning("%s: not written, %s (%d times by now); training goes on", what, error, self.count)

    def guard(self, what: str, write: Callable[[], object], failure: type[Exception] = OSError) -> None:
        """Writes, and counts a failure of this kind; what we write ourselves fails by the disk only."""
        try:
            write()
        except failure as error:
            self.tell(what, error)
