"""What the checkpoints of a run come to: how often, how many are kept, how much is written."""

from dataclasses import dataclass

from trainer.checkpoint.format.retention import most_kept, policy_of
from trainer.checkpoint.save.forecast import Ahead, best_ahead, saves_ahead
from trainer.checkpoint.save.schedule import Budget, Costs, plan
from trainer.config.schema import Config

COPY_BYTES_PER_SECOND, WRITE_BYTES_PER_SECOND, WRITER_CPU_BYTES_PER_SECOND = 10e9, 1.4e9, 5.5e9
"""What a save is taken to cost until a run measures it: 1.49 GB copied in 0.13 s, written in 1.04 s with 0.27 s of CPU time on two cores and
a virtual disk (tests/benchmarks/results/checkpoint_stall.json)."""

UNKNOWN_EPOCH = 2**62


@dataclass(frozen=True)
class Storage:
    """Checkpoints over the whole run; None where the length of a step is not known."""

    checkpoint_bytes: int
    most_kept: int
    disk_bytes: int
    """The most at once, with one being written."""
    interval_seconds: float | None
    """Between two saves by the clock."""
    lost_work_seconds: float | None
    """What a crash of the machine may lose."""
    overhead_fraction: float | None
    saves: dict[str, int] | None
    """How many are written, by what asks for them."""
    most_best: int | None
    """Further ones for a best validation loss, at most."""
    written_bytes: int | None


def storage_of(
    config: Config,
    checkpoint_bytes: int,
    *,
    step_seconds: float | None,
    sequences_per_epoch: int | None,
    has_validation: bool,
    on_cpu: bool,
    has_twins: bool,
) -> Storage:
    """What the settings come to for checkpoints of this size; `has_twins`: whether several processes hold the same weights."""
    settings = config.checkpoint
    is_compared = has_twins and config.safety.digest_every_steps > 0
    policy = policy_of(settings, config.safety.rollback.max, keep_agreed=int(is_compared))
    kept = most_kept(policy, config.max_steps, has_copies=bool(settings.mirror))
    disk = min((kept + 1) * checkpoint_bytes, policy.max_disk_bytes or UNKNOWN_EPOCH)
    if step_seconds is None:
        return Storage(checkpoint_bytes, kept, disk, None, None, None, None, None, None)
    own = float(checkpoint_bytes)
    costs = Costs(
        own / COPY_BYTES_PER_SECOND, own / WRITE_BYTES_PER_SECOND, own / WRITER_CPU_BYTES_PER_SECOND, step_seconds
    )
    budget = Budget(
        settings.max_lost_work_seconds,
        settings.max_overhead_fraction,
        settings.every_minutes,
        settings.every_tokens,
        writer_takes_from_step=on_cpu,
    )
    planned = plan(budget, costs)
    taken = 1 if settings.every_tokens else 0  # by its progress so far `saves_ahead` tells the tokens of a step
    ahead = Ahead(
        max_steps=config.max_steps,
        global_batch=config.global_batch,
        sequences_per_epoch=sequences_per_epoch or UNKNOWN_EPOCH,
        evaluation_every_steps=config.evaluation.every_steps if has_validation else None,
        step=taken,
        sequences=taken * config.global_batch,
        tokens=taken * config.global_batch * config.sequence_length,
        step_seconds=step_seconds,
        clock_seconds=planned.write_interval_seconds,
    )
    saves = saves_ahead(settings, ahead)
    return Storage(
        checkpoint_bytes,
        kept,
        disk,
        planned.write_interval_seconds,
        planned.lost_work_seconds,
        planned.overhead_fraction,
        saves,
        best_ahead(settings, ahead),
        sum(saves.values()) * checkpoint_bytes,
    )
