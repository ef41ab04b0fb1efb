"""What the ranks tell each other about checkpoints: small objects on the host, beside whatever the devices are doing."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from accelerate import Accelerator

from trainer.errors import CheckpointError, TrainerError
from trainer.text import one_line

TIMEOUT = timedelta(minutes=30)
"""How long ranks wait for each other: rank 0 alone verifies checkpoints and waits for the disk."""


class Ranks:
    """The processes of this run; with one, everything is said to oneself."""

    def __init__(self, accelerator: Accelerator, folder: Path) -> None:
        """`folder`: of the checkpoints, for what is told of it."""
        self._folder = folder
        self.number, self.count = accelerator.process_index, accelerator.num_processes
        # The devices' own group would make the host wait for all the work that is queued there.
        on_devices = self.count > 1 and accelerator.device.type != "cpu"
        self._group = dist.new_group(backend="gloo", timeout=TIMEOUT) if on_devices else None

    @property
    def is_main(self) -> bool:
        return self.number == 0

    def all_gather(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank, in the order of the ranks."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value, group=self._group)
        return values

    def first_failure(self, failure: str | None) -> str | None:
        """The first failure of any rank, on every rank."""
        return next((text for text in self.all_gather(failure) if text), None)

    def broadcast_from_main(self, work: Callable[[], Any]) -> Any:
        """Runs `work` on rank 0 and gives its result, or its error, to every rank: one that raised alone would leave the others waiting."""
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = work()
            except TrainerError as error:
                outcome[1] = error
            except OSError as error:
                outcome[1] = CheckpointError(
                    f"{self._folder} cannot be used ({one_line(error, 1000)}); fix that and start again"
                )
        if self.count > 1:
            dist.broadcast_object_list(outcome, group=self._group)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]
