"""Which of a run's many checkpoints its log tells of; the journal has them all."""

from trainer.text import duration, size

TOLD_SECONDS = 300.0
"""At most so often, unless there is a reason to tell one in any case."""


class Told:
    """Remembers what was told last, and how many checkpoints there were since."""

    def __init__(self) -> None:
        self._told_at: float | None = None
        self._num_untold = 0

    def line(
        self, step: int, reason: str, *, num_bytes: int, seconds: float, now: float, in_any_case: bool
    ) -> str | None:
        """What the log says of a checkpoint that is on the disk now; None when it need not be told."""
        if self._told_at is not None and now - self._told_at < TOLD_SECONDS and not in_any_case:
            self._num_untold += 1
            return None
        others = f" ({self._num_untold} more since the one told last)" if self._num_untold else ""
        self._told_at, self._num_untold = now, 0
        return f"step {step}: checkpoint ({reason}), {size(num_bytes)} in {duration(seconds)}{others}"
