"""How a run ended, or that it is running: one word, which stands in outcome.json and is the exit code of the launch."""

from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """The state of a run after a launch of it."""

    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    """Asked to stop, and saved."""
    DIVERGED = "diverged"
    ROLLBACK = "rollback"
    """Diverged, and goes on from before that: `trainer launch` starts it again at once."""
    FAILED = "failed"
    REFUSED = "refused"
    """Not started, because something has to be fixed first."""
    RUNNING = "running"
    """Where the processes are gone, it was killed."""

    @property
    def exit_code(self) -> int:
        """Of `./launch.sh`; 75 (EX_TEMPFAIL) asks a scheduler to queue the run again."""
        return EXIT_CODES[self]


EXIT_CODES = {
    Outcome.FINISHED: 0,
    Outcome.INTERRUPTED: 75,
    Outcome.DIVERGED: 3,
    Outcome.ROLLBACK: 4,
    Outcome.FAILED: 1,
    Outcome.REFUSED: 2,
    Outcome.RUNNING: 1,
}

ENDED = (Outcome.FINISHED, Outcome.INTERRUPTED, Outcome.DIVERGED, Outcome.ROLLBACK, Outcome.FAILED)
"""Outcomes of a launch that had begun: a refused start does not take their place."""


@dataclass(frozen=True)
class Ending:
    """How a run ended, and the reason as a clause."""

    outcome: Outcome
    reason: str
