"""The group of the run's processes: what is done before they meet, how it is formed."""

import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState

from trainer import determinism
from trainer.errors import LaunchError
from trainer.launch.environment import LaunchEnv, num_threads, others_wait

T = TypeVar("T")


GROUP_TIMEOUT = timedelta(minutes=30)
"""How long ranks wait for each other: rank 0 alone verifies and commits checkpoints, and those of large models take minutes."""


def rank0_before_init(work: Callable[[], T]) -> T | None:
    """Does `work` on rank 0 before the ranks join; the others wait, and get None. Where rank 0 ends by an error, its launcher ends them.

    They would do nothing else but wait within torch's meeting, where no signal reaches them: the launcher would kill them 30 seconds later.

    raises  LaunchError on another rank when the launcher of rank 0, which keeps the word between them, is gone
    """
    is_main, store = os.environ.get("RANK", "0") == "0", _launchers_store()
    result = work() if is_main else None
    if store is None:
        return result
    word = f"trainer/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/may join"
    try:
        if is_main:
            store.set(word, b"")
        while not store.check([word]):
            time.sleep(0.05)
    except RuntimeError as error:
        raise LaunchError(
            f"the launcher of rank 0 is gone before the ranks had met ({str(error).splitlines()[0]}); see what rank 0 says, and start again"
        ) from None
    return result


def _launchers_store() -> torch.distributed.TCPStore | None:
    """The store that the launcher keeps for its ranks; None for a process that is alone, or was launched in another way."""
    if not others_wait():
        return None
    return torch.distributed.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)


def init_process_group(place: LaunchEnv, *, deterministic: bool) -> torch.device:
    """Forms the group of processes, in which the ranks may agree on something before the Accelerator is made; returns this process's device."""
    torch.set_num_threads(num_threads())
    if deterministic:
        determinism.make_deterministic()
    return PartialState(cpu=place.use_cpu, timeout=GROUP_TIMEOUT).device
