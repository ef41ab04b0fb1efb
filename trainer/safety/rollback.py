"""Which stretches of the data a run steps over, since it diverged on them, and what its learning rate is after that.

What is known stands in two places: in the saved state of every checkpoint made since, and in runs/NAME/rollbacks.json, which is written before
a run goes back. A launch that begins before a stretch learns it from there, however often it is killed: what is known already is not added.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer import files
from trainer.config.unattended import RollbackConfig

log = logging.getLogger(__name__)

ROLLBACKS = "rollbacks.json"

LASTING_STEPS = 100
"""So many steps beyond where a run diverged before, until it may do so again, are progress that lasts: rollbacks are counted anew."""


@dataclass(frozen=True, order=True)
class Stretch:
    """Data that a run has stepped over."""

    step: int
    """The first that is taken with other data than the first time."""
    last_step: int
    """The one by which the run was found to have diverged."""
    begin: int
    """Position of the first sequence."""
    end: int
    """Position after the last."""
    lr_factor: float = 1.0
    lr_steps: int = 0


class Rollbacks:
    """What a run steps over; a part of the TrainState, the same on every rank."""

    def __init__(self, settings: RollbackConfig) -> None:
        self._settings = settings
        self.stretches: tuple[Stretch, ...] = ()
        self.agreed: int | None = None
        """The last step at which all ranks were found to hold the same weights and moments; None where that is not looked at."""
        self.is_split = False
        """Whether they were found to differ."""

    @property
    def positions(self) -> tuple[tuple[int, int], ...]:
        """First position, and the one after the last, of each stretch."""
        return tuple((one.begin, one.end) for one in self.stretches if one.begin < one.end)

    def lr_factor(self, step: int) -> float:
        """What the learning rate of a step is multiplied by."""
        factor = 1.0
        for stretch in self.stretches:
            if stretch.step <= step < stretch.step + stretch.lr_steps:
                factor *= stretch.lr_factor
        return factor

    def learn(self, known: Iterable[Stretch], step: int) -> None:
        """Takes in what a launch that begins at a step must know: the stretches after it; those before it are in the state, or on another branch."""
        self.stretches = tuple(sorted({*self.stretches, *(one for one in known if one.step > step)}))

    def next_one(self, first_unsure: int, step: int, position: int, global_batch: int) -> Stretch:
        """What is to be stepped over by a run that has diverged: the data of the steps `first_unsure` to `step`, after which it stands at `position`."""
        if self.is_split:  # no data is to blame
            return Stretch(first_unsure, step, position, position)
        begin = position
        for _ in range(step - first_unsure + 1):
            begin -= global_batch
            begin = min((first for first, end in self.positions if end == begin), default=begin)
        settings = self._settings
        return Stretch(first_unsure, step, max(0, begin), position, settings.lr_factor, settings.lr_steps)

    def state_dict(self) -> dict[str, Any]:
        return {"stretches": [asdict(stretch) for stretch in self.stretches], "agreed": self.agreed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.stretches = tuple(Stretch(**stretch) for stretch in state["stretches"])


def num_in_a_row(stretches: Iterable[Stretch], first_unsure: int) -> int:
    """How many rollbacks there were without lasting progress, up to a divergence that begins at this step."""
    number = 0
    for stretch in sorted(stretches, reverse=True):
        if first_unsure - stretch.last_step >= LASTING_STEPS:
            break
        number, first_unsure = number + 1, stretch.step
    return number


def read_rollbacks(folder: Path) -> list[Stretch]:
    """What a run's folder says was stepped over; nothing where there is no such file. A damaged one is told, and says nothing."""
    try:
        return [Stretch(**stretch) for stretch in json.loads((folder / ROLLBACKS).read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError) as error:
        log.warning(
            "%s is damaged (%s): what was stepped over stands in the checkpoints only", folder / ROLLBACKS, error
        )
        return []


def write_rollbacks(folder: Path, stretches: Sequence[Stretch]) -> None:
    """Writes it down, whole and durably. raises OSError"""
    files.write_atomic(folder / ROLLBACKS, json.dumps([asdict(stretch) for stretch in stretches], indent=1) + "\n")
