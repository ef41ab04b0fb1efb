"""The room that one run's checkpoints take, on the disk and in memory: known, proved and forecast."""

import logging
from collections.abc import Collection
from dataclasses import asdict

import torch

from trainer import files
from trainer.checkpoint.context import CheckpointContext
from trainer.checkpoint.format.retention import least_bytes, most_kept
from trainer.checkpoint.save.forecast import (
    Ahead,
    Course,
    FreeSpace,
    best_ahead,
    full_sentence,
    permanent_bytes_a_day,
    saves_ahead,
    written_sentence,
)
from trainer.checkpoint.save.preflight import preflight
from trainer.checkpoint.save.schedule import Costs, Plan
from trainer.checkpoint.save.snapshot import slot_bytes_for
from trainer.config.optimizers import optimizer_entry
from trainer.config.schema import CheckpointConfig
from trainer.errors import CheckpointError
from trainer.state import Progress
from trainer.text import size

log = logging.getLogger(__name__)


class Room:
    """Rank 0's view of what there is and what will be needed."""

    def __init__(self, context: CheckpointContext, settings: CheckpointConfig, course: Course) -> None:
        self._model, self._optimizer = context.model, context.optimizer
        self._store, self._policy, self._layout = context.store, context.policy, context.layout
        self._settings, self._course = settings, course
        self._free_space, self._is_told = FreeSpace(), False

    def slot_bytes(self) -> int:
        """Bytes of memory that one snapshot takes."""
        return slot_bytes_for(
            *expected_bytes(self._model, self._optimizer), 4 * sum(1 for _ in self._model.parameters())
        )

    def check(self, held: Collection[str] = ()) -> list[tuple[str, str]]:
        """Proves that the disk takes the checkpoints that are kept and one in flight. raises CheckpointError with figures

        Where a bound leaves no room for one in flight, since the last launch died before it made that, the policy makes it now.

        held      names of folders that stay: what is being loaded
        returns   what went, and why
        """
        parameters, moments = expected_bytes(self._model, self._optimizer)
        one, most = parameters + moments, self._policy.max_disk_bytes
        if most is not None and most < (least := least_bytes(self._policy, one)):
            raise CheckpointError(
                f"checkpoint.max_disk_bytes is {size(most)}, and a checkpoint of this run takes {size(one)}: at least {size(least)} are needed for "
                "the newest, the best and one being written; raise it"
            )
        gone = self._store.prune(self._policy, in_flight_bytes=one, held=held) if most is not None else []
        if shortage := self._store.shortage(self._policy, in_flight_bytes=one):
            raise CheckpointError(shortage)
        self._store.folder.mkdir(parents=True, exist_ok=True)
        there = sum(
            manifest.num_bytes for manifest in self._store.sound_manifests()
        )  # what was set aside gives no room back
        proof = preflight(
            self._store.folder,
            self._layout.large_files(parameters, moments),
            num_kept=most_kept(self._policy, self._course.max_steps, has_copies=bool(self._settings.mirror)),
            there_bytes=there,
            max_disk_bytes=most,
        )
        log.info(proof.sentence)
        return gone

    def look(self, now: float) -> None:
        """Remembers how much is free on the disk, at a monotonic time in seconds."""
        self._free_space.look(now, files.free_bytes(self._store.folder))

    def forecast(
        self, checkpoint_bytes: int, progress: Progress, planned: Plan | None, costs: Costs | None, *, anew: bool
    ) -> list[str]:
        """What will be written until the end, and when the disk will be full, as sentences: once, and `anew` where the plan has changed.

        None while costs are not known, and at the end.
        """
        if (
            planned is None
            or costs is None
            or costs.step_seconds <= 0
            or progress.step >= self._course.max_steps
            or (self._is_told and not anew)
        ):
            return []
        self._is_told, settings = True, self._settings
        ahead = Ahead(
            **asdict(self._course),
            **asdict(progress),
            step_seconds=costs.step_seconds,
            clock_seconds=planned.write_interval_seconds,
        )
        growth = permanent_bytes_a_day(
            checkpoint_bytes, ahead.step_seconds, settings.keep_every_steps, settings.max_disk_bytes
        )
        free, measured = files.free_bytes(self._store.folder), self._free_space.growth_bytes_a_day()
        return [
            written_sentence(
                checkpoint_bytes, saves_ahead(settings, ahead), best_ahead(settings, ahead), ahead.seconds
            ),
            full_sentence(free, growth, measured, ahead.seconds),
        ]


def expected_bytes(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, int]:
    """Bytes of one checkpoint: parameters and buffers, and the state that the optimizer keeps of each parameter."""
    parameters = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    moments = sum(
        optimizer_entry(group.get("algorithm", "adamw")).state_bytes(p)
        for group in optimizer.param_groups
        for p in group["params"]
    )
    return parameters, moments
