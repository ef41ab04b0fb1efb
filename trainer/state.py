"""What must survive a restart beside weights, moments and random streams.

One object is registered with Accelerate, because Accelerate stores registered objects by index, from rank 0 only, and
refuses to load when their number changed. It holds named parts; its values are plain JSON, equal on every rank, and stand in the
checkpoint's manifest too, so that nothing ever needs unpickling to be read.
"""

import logging
from dataclasses import asdict, dataclass
from typing import Any, Protocol

log = logging.getLogger(__name__)


class Stateful(Protocol):
    """Anything whose state survives a restart as plain JSON values."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass
class Progress:
    """How far the run has come, counted over all ranks."""

    step: int = 0
    """Optimizer steps taken."""
    sequences: int = 0
    """The position in the data: the next batch begins here."""
    tokens: int = 0
    """Tokens trained on."""

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.sequences, self.tokens = int(state["step"]), int(state["sequences"]), int(state["tokens"])


class TrainState:
    """The one registered object: progress and the other named parts.

    A part that a checkpoint lacks starts fresh and one that this run lacks is left out, each with a warning: a newer
    version of the trainer can read an older checkpoint.
    """

    VERSION = 1

    def __init__(self, progress: Progress, **parts: Stateful) -> None:
        self.progress = progress
        self.began_at: int | None = None
        """The position at which the last step of this launch found the data; None before the first."""
        self._parts: dict[str, Stateful] = {"progress": progress, **parts}

    def advance(self, num_sequences: int, num_tokens: int) -> None:
        """Puts one global batch into the past: step, position and tokens move together, here and nowhere else."""
        self.began_at = self.progress.sequences
        self.progress.step += 1
        self.progress.sequences += num_sequences
        self.progress.tokens += num_tokens

    def state_dict(self) -> dict[str, Any]:
        return {"version": self.VERSION, **{name: part.state_dict() for name, part in self._parts.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        found = {name: value for name, value in state.items() if name != "version"}
        for name in found.keys() - self._parts.keys():
            log.warning("the checkpoint's state has a part %r that this run does not know: it is left out", name)
        for name, part in self._parts.items():
            if name in found:
                part.load_state_dict(found[name])
            else:
                log.warning("the checkpoint's state has no part %r: it starts fresh", name)
