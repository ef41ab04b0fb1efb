"""A snapshot of a sharded model is a work of all ranks: rank 0 says whether it takes one, and then each tensor is gathered in turn."""

from collections.abc import Callable
from typing import TypeVar

from trainer.checkpoint.context import CheckpointContext

T = TypeVar("T")


class Gathering:
    """What ranks do together for a snapshot; where rank 0 holds everything, nothing."""

    def __init__(self, context: CheckpointContext) -> None:
        self._context, self._has_begun = context, False

    def lead(self, take: Callable[[], T]) -> T:
        """On rank 0: takes a snapshot, or not, by `take`, which calls `begin` before it copies; the others `follow`."""
        self._has_begun = False
        try:
            return take()
        finally:
            if not self._has_begun:
                self._say(False)

    def begin(self) -> None:
        """The others begin to gather."""
        self._has_begun = True
        self._say(True)

    def follow(self) -> None:
        """On another rank: gathers with rank 0 where it takes a snapshot."""
        context = self._context
        if context.layout.gathers and context.ranks.broadcast_from_main(lambda: False):
            context.layout.gather(context.model, context.optimizer)

    def _say(self, begins: bool) -> None:
        if self._context.layout.gathers:
            self._context.ranks.broadcast_from_main(lambda: begins)
