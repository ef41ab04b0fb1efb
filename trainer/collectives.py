"""What ranks tell each other: small objects, on every rank in the same order; a process that is alone tells itself."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from trainer.errors import TrainerError

T = TypeVar("T")


def all_gather(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """Every rank's value, on every rank, in the order of the ranks. `group` None: all ranks, by the way of their devices."""
    if _is_alone():
        return [value]
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def broadcast_from_main(work: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """What `work` returns on rank 0, on every rank; its TrainerError there is every rank's: one that gave up alone would leave the others waiting."""
    outcome: list[Any] = [None, None]
    is_alone = _is_alone()
    if is_alone or dist.get_rank() == 0:
        try:
            outcome[0] = work()
        except TrainerError as error:
            outcome[1] = error
    if not is_alone:
        dist.broadcast_object_list(outcome, group=group)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def main_process_first(work: Callable[[], T]) -> T:
    """Does `work` on rank 0, then on the others, which find what it left (a cache, a downloaded file); errors as in `broadcast_from_main`."""
    results: list[T] = []
    broadcast_from_main(lambda: results.append(work()))
    return results[0] if results else work()


def _is_alone() -> bool:
    """Whether nobody else is there: no group, or one of this process only, through which a value would wait for its device."""
    return not dist.is_initialized() or dist.get_world_size() == 1
