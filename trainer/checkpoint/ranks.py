"""What the ranks tell each other about checkpoints: small objects on the host, beside whatever the devices are doing."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist
from accelerate import Accelerator

from trainer import collectives
from trainer.errors import CheckpointError
from trainer.text import one_line

T = TypeVar("T")

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

    def all_gather(self, value: T) -> list[T]:
        """Every rank's value, on every rank, in the order of the ranks."""
        return collectives.all_gather(value, self._group)

    def first_failure(self, failure: str | None) -> str | None:
        """The first failure of any rank, on every rank."""
        return next((text for text in self.all_gather(failure) if text), None)

    def broadcast_from_main(self, work: Callable[[], T]) -> T:
        """What `work` returns on rank 0, or its error, on every rank; CheckpointError where the folder cannot be used."""
        return collectives.broadcast_from_main(lambda: self._told_of_the_folder(work), self._group)

    def _told_of_the_folder(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except OSError as error:
            raise CheckpointError(
                f"{self._folder} cannot be used ({one_line(error, 1000)}); fix that and start again"
            ) from error
