"""How a global batch is shared out: the one rule that ties batch sizes to the number of processes."""

from trainer.errors import ConfigError


def accumulation_steps(global_batch: int, micro_batch: int, world_size: int) -> int:
    """How many micro-batches each rank takes for one optimizer step, all sizes in sequences.

    raises  ConfigError with the nearest sizes that fit
    """
    for name, value in (("global_batch", global_batch), ("micro_batch", micro_batch), ("processes", world_size)):
        if value < 1:
            raise ConfigError(f"{name} is {value}; 1 or more was expected.")
    at_once = micro_batch * world_size
    if global_batch % at_once == 0:
        return global_batch // at_once
    below = global_batch // at_once * at_once
    nearest = [str(size) for size in (below, below + at_once) if size]
    message = (
        f"global_batch {global_batch} is not a multiple of micro_batch x processes = {micro_batch} x {world_size} = "
        f"{at_once}; nearest: {', '.join(nearest)}."
    )
    if global_batch % world_size == 0:
        share = global_batch // world_size
        fitting = max(size for size in range(1, min(micro_batch, share) + 1) if share % size == 0)
        message += f" Or keep it and set micro_batch to {fitting}."
    raise ConfigError(message)
