"""The nearest change with which a run would fit: first what costs least."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from trainer.text import numbered
from trainer.tools.plan.memory import Setting

MOST_SHARDS = 1024


def nearest_change(setting: Setting, global_batch: int, processes: int, fits: Callable[[Setting], bool]) -> str | None:
    """What to change, as settings where that suffices; None where nothing here does.

    A smaller micro_batch leaves the same global batch and the same result; recomputing takes a third more time; sharding takes more GPUs.
    """
    for changed, words in _changes(setting, global_batch, processes):
        if fits(changed):
            return words
    return None


def _changes(setting: Setting, global_batch: int, processes: int) -> Iterator[tuple[Setting, str]]:
    share = global_batch // processes
    smaller = [size for size in range(setting.micro_batch - 1, 0, -1) if share % size == 0]
    sizes = [
        (replace(setting, micro_batch=size, accumulation=share // size), f"micro_batch={size}") for size in smaller
    ]
    kinds = [(setting, ""), *sizes]
    again = [
        (replace(changed, is_checkpointed=True), f"{words} model.gradient_checkpointing=true".strip())
        for changed, words in kinds
        if not setting.is_checkpointed
    ]
    yield from (*sizes, *again)
    shards = 2 * setting.shards
    while shards <= MOST_SHARDS:
        for changed, words in (*kinds, *again):
            yield replace(changed, shards=shards), f"{words} sharded over {numbered(shards, 'GPU')}".strip()
        shards *= 2
