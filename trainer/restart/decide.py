"""What is done after the end of a launch, as a table: the first row that fits counts. A pure function of facts; nothing is read here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from trainer.config.unattended import RestartConfig
from trainer.ending.causes import OWN_FAILURES, Cause
from trainer.ending.outcomes import Outcome

FIRST_WAIT_SECONDS, WAIT_FACTOR, LONGEST_WAIT_SECONDS = 2.0, 4.0, 600.0
"""The wait before a restart grows with each that came no further than the one before, and begins anew with progress."""

LOOK_FOR_ROOM_SECONDS = 60.0

SAME_AGAIN, SAME_OFTEN = 2, 3
"""The same failure so often in a row: an older checkpoint is tried; nothing helps any more."""


@dataclass(frozen=True, kw_only=True)
class End:
    """How a launch ended, and what those before it came to."""

    outcome: Outcome
    cause: str
    """Of ending/causes.py."""
    words: str
    step: int = 0
    """Where it ended."""
    num_same: int = 1
    """Ends in a row, this one included, by one cause at one step with the same words."""
    num_stuck: int = 0
    """Restarts in a row after which no launch came further than the one before."""
    num_restarts: int = 0
    """Within restart.window_hours."""
    micro_batch: int = 1
    was_asked_to_stop: bool = False
    """Whether it had taken up a request to stop."""
    has_saved: bool = True
    """Whether there is a checkpoint."""
    lacks_room: bool = False
    """Whether the disk of the checkpoints has no room for another one."""
    older_step: int | None = None
    """The checkpoint before the newest; None where there is none."""


@dataclass(frozen=True)
class Decision:
    """What is done."""

    do: Literal["restart", "wait for room", "stop"]
    why: str
    """As a clause, where it is not what the run has said itself."""
    wait_seconds: float = 0.0
    micro_batch: int | None = None
    """The one to go on with; None: the same."""
    from_step: int | None = None
    """The checkpoint to go on from; None: the newest."""


class Row(NamedTuple):
    """A kind of end, and what is done after it."""

    name: str
    fits: Callable[[End, RestartConfig], bool]
    then: Callable[[End], Decision]
    is_done: str
    """For the guide."""


def wait_seconds(num_stuck: int) -> float:
    """How long a restart waits after so many in a row that brought nothing."""
    return min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * WAIT_FACTOR ** min(num_stuck, 20))


def _again(end: End) -> Decision:
    return Decision("restart", "going on from the newest checkpoint", wait_seconds(end.num_stuck))


def _with_less(end: End) -> Decision:
    half = smaller_micro_batch(end.micro_batch)
    return Decision("restart", f"going on with micro_batch {half} instead of {end.micro_batch}", micro_batch=half)


def smaller_micro_batch(micro_batch: int) -> int:
    """Half of it, or the largest size below that divides it: the global batch is a multiple of each."""
    return max(size for size in range(1, micro_batch // 2 + 1) if micro_batch % size == 0)


def _from_older(end: End) -> Decision:
    why = f"the same failure at step {end.step} for the second time: going on from the checkpoint before the newest"
    return Decision("restart", why, wait_seconds(end.num_stuck), from_step=end.older_step)


def _stop(why: str) -> Callable[[End], Decision]:
    return lambda end: Decision("stop", why)


def _is_same(end: End, number: int) -> bool:
    return end.cause in (*OWN_FAILURES, Cause.REFUSED) and end.num_same >= number


def _is_full(end: End, _: RestartConfig) -> bool:
    """A start that was refused for something else waits for a person, however full the disk is; and so does a run's first one."""
    if end.outcome == Outcome.REFUSED:
        return end.cause == Cause.NO_ROOM and end.has_saved
    return end.lacks_room or end.cause == Cause.NO_ROOM


def _wait_for_room(end: End) -> Decision:
    """What lacks by figures is looked for; a quota, and what else no figure tells, shows at the next start."""
    wait = LOOK_FOR_ROOM_SECONDS if end.lacks_room else max(LOOK_FOR_ROOM_SECONDS, wait_seconds(end.num_stuck))
    return Decision("wait for room", "looking for room every minute", wait)


OVER = (Outcome.FINISHED, Outcome.INTERRUPTED, Outcome.DIVERGED)

_AGAIN = "again from the newest checkpoint"

ROWS = (
    Row("finished, asked to stop, or diverged", lambda end, _: end.outcome in OVER, _stop("it is over"), "nothing"),
    Row(
        "asked to stop by `stop`, and failed before it had",
        lambda end, _: end.was_asked_to_stop,
        _stop("somebody has asked it to stop"),
        "nothing",
    ),
    Row(
        "the disk is full, or a quota used up",
        _is_full,
        _wait_for_room,
        "waits until a checkpoint has room, looks every minute",
    ),
    Row(
        "out of memory",
        lambda end, _: end.cause == Cause.OUT_OF_MEMORY and end.micro_batch > 1,
        _with_less,
        "again with half the `micro_batch`, the same `global_batch`, from then on",
    ),
    Row(
        "out of memory with `micro_batch` 1",
        lambda end, _: end.cause == Cause.OUT_OF_MEMORY,
        _stop("micro_batch is 1 already: the model does not fit"),
        "nothing",
    ),
    Row(
        "refused: a setting, the data or a checkpoint needs a person",
        lambda end, _: end.outcome == Outcome.REFUSED,
        _stop("somebody has to fix what it says"),
        "nothing: it would be refused again",
    ),
    Row(
        "`restart.max` restarts within `restart.window_hours`",
        lambda end, settings: end.num_restarts >= settings.max,
        _stop("as often as restart.max allows in restart.window_hours"),
        "nothing more",
    ),
    Row(
        "`restart.max` restarts in a row that came no further, in whatever time",
        lambda end, settings: end.num_stuck >= settings.max,
        _stop("as often as restart.max allows without any progress"),
        "nothing more",
    ),
    Row(
        "an exception or a fault, the same at the same step for the third time",
        lambda end, _: _is_same(end, SAME_OFTEN),
        _stop("the same failure at the same step again and again: the code, the data or the settings have to change"),
        "nothing",
    ),
    Row(
        "the same for the second time",
        lambda end, _: _is_same(end, SAME_AGAIN) and end.older_step is not None,
        _from_older,
        "again from the checkpoint before the newest",
    ),
    Row(
        "a disk that is broken or read-only, for the third time without progress",
        lambda end, _: end.cause == Cause.DISK and end.num_stuck >= SAME_OFTEN - 1,
        _stop("the disk does not repair itself"),
        "nothing",
    ),
    Row("a GPU or its driver failed (CUDA, Xid)", lambda end, _: end.cause == Cause.DEVICE, _again, _AGAIN),
    Row(
        "what ranks talk by failed (NCCL), or one of them was lost",
        lambda end, _: end.cause in (Cause.CONNECTION, Cause.PEER),
        _again,
        _AGAIN,
    ),
    Row("a hang", lambda end, _: end.cause == Cause.HANG, _again, _AGAIN),
    Row(
        "anything else: a rank or the whole launch was killed (by the system for memory, too), an exception for the first time",
        lambda end, _: True,
        _again,
        f"{_AGAIN}; here and in the rows above after 2 seconds, and four times as long after each restart without progress, up to 10 minutes",
    ),
)


def decide(end: End, settings: RestartConfig) -> Decision:
    """What is done after this end."""
    return next(row.then(end) for row in ROWS if row.fits(end, settings))


def table() -> str:
    """The rows in Markdown, as trainer/guides/restart.md has them."""
    lines = [f"| {row.name} | {row.is_done} |" for row in ROWS]
    return "\n".join(("| how a launch ended | what is done |", "|---|---|", *lines))
