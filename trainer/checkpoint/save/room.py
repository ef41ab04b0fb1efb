"""The room that one run's checkpoints take, on the disk and in memory: known, proved and forecast."""

import logging
from dataclasses import asdict

import torch

from trainer import files
from trainer.checkpoint.context import CheckpointContext
from trainer.checkpoint.format.retention import Names, least_bytes, most_kept
from trainer.checkpoint.save import forecast
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

    def __init__(self, context: CheckpointContext, settings: CheckpointConfig, course: forecast.Course) -> None:
        self._context, self._store, self._policy = context, context.store, context.policy
        self._settings, self._course = settings, course
        self._free_space, self._is_told = forecast.FreeSpace(), False

    def slot_bytes(self) -> int:
        """Bytes of memory that one snapshot takes."""
        num_tensors = 4 * sum(1 for _ in self._context.model.parameters())
        return slot_bytes_for(*expected_bytes(self._context.model, self._context.optimizer), num_tensors)

    def check(self, held: Names = ()) -> None:
        """Proves that the disk takes the checkpoints that are kept and one in flight. raises CheckpointError with figures

        Where a bound leaves no room for one in flight, since the last launch died before it made that, the policy makes it now.
        """
        parameters, moments = expected_bytes(self._context.model, self._context.optimizer)
        one, most = parameters + moments, self._policy.max_disk_bytes
        if most is not None and most < (least := least_bytes(self._policy, one)):
            raise CheckpointError(
                f"checkpoint.max_disk_bytes is {size(most)}, and a checkpoint of this run takes {size(one)}: at least {size(least)} are needed for "
                "the newest, the best and one being written; raise it"
            )
        if most is not None:
            for name, reason in self._store.prune(self._policy, in_flight_bytes=one, held=held):
                self._context.journal.write("prune", name=name, reason=reason)
        if shortage := self._store.shortage(self._policy, in_flight_bytes=one):
            raise CheckpointError(shortage)
        self._store.folder.mkdir(parents=True, exist_ok=True)
        there = sum(sound.num_bytes for sound in self._store.sound_manifests())  # what was set aside gives no room back
        kept = most_kept(self._policy, self._course.max_steps, has_copies=bool(self._settings.mirror))
        files_of_one = self._context.layout.large_files(parameters, moments)
        proof = preflight(self._store.folder, files_of_one, num_kept=kept, there_bytes=there, max_disk_bytes=most)
        log.info(proof.sentence)

    def look(self, now: float) -> None:
        """Remembers how much is free on the disk, at a monotonic time in seconds."""
        self._free_space.look(now, files.free_bytes(self._store.folder))

    def days_until_full(self, checkpoint_bytes: int, costs: Costs | None) -> float | None:
        """In how many days the disk of the checkpoints is full; None where it does not fill, or that is not known yet."""
        seconds = costs.step_seconds if costs else 0.0
        growth = forecast.permanent_bytes_a_day(checkpoint_bytes, seconds, self._settings)
        free, measured = files.free_bytes(self._store.folder), self._free_space.growth_bytes_a_day()
        return forecast.days_until_full(free, growth, measured)

    def forecast(
        self, checkpoint_bytes: int, progress: Progress, planned: Plan | None, costs: Costs | None, *, anew: bool
    ) -> list[str]:
        """What will be written until the end, and when the disk will be full, as sentences: once, and `anew` where the plan has changed.

        None while costs are not known, and at the end.
        """
        if planned is None or costs is None or costs.step_seconds <= 0 or (self._is_told and not anew):
            return []
        if progress.step >= self._course.max_steps:
            return []
        self._is_told, settings, seconds = True, self._settings, costs.step_seconds
        clock = planned.write_interval_seconds
        ahead = forecast.Ahead(**asdict(self._course), **asdict(progress), step_seconds=seconds, clock_seconds=clock)
        counts, num_best = forecast.saves_ahead(settings, ahead), forecast.best_ahead(settings, ahead)
        growth = forecast.permanent_bytes_a_day(checkpoint_bytes, seconds, settings)
        free, measured = files.free_bytes(self._store.folder), self._free_space.growth_bytes_a_day()
        return [
            forecast.written_sentence(checkpoint_bytes, counts, num_best, ahead.seconds),
            forecast.full_sentence(free, growth, measured, ahead.seconds),
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
