"""What ranks tell each other, on two ranks and on one."""

from pathlib import Path

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from trainer.collectives import all_gather, broadcast_from_main, main_process_first
from trainer.errors import DataError


def _refuse():
    raise DataError("no such file")


def _rank(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2)
    assert all_gather({"rank": rank}) == [{"rank": 0}, {"rank": 1}]
    assert broadcast_from_main(lambda: rank) == 0
    for everyone_is_told in (broadcast_from_main, main_process_first):
        with pytest.raises(DataError, match="no such file"):
            everyone_is_told(_refuse if rank == 0 else lambda: pytest.fail("the second rank began"))

    def work() -> list[str]:
        found = sorted(path.name for path in folder.glob("of_*"))
        (folder / f"of_{rank}").touch()
        return found

    assert main_process_first(work) == ([] if rank == 0 else ["of_0"])
    dist.destroy_process_group()


def test_two_ranks_hear_each_other_and_the_main_one_s_errors(tmp_path):
    mp.start_processes(_rank, args=(tmp_path,), nprocs=2, start_method="forkserver")


def test_a_process_that_is_alone_hears_itself():
    assert all_gather("mine") == ["mine"]
    assert broadcast_from_main(lambda: "mine") == "mine"
    assert main_process_first(lambda: "mine") == "mine"
    for everyone_is_told in (broadcast_from_main, main_process_first):
        with pytest.raises(DataError):
            everyone_is_told(_refuse)


def test_a_group_of_one_is_alone_too_and_gives_the_very_value_back(tmp_path):
    """MULTI_GPU with one process forms such a group, in which a value would go through the device and wait for its work."""
    value = object()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        assert all_gather(value)[0] is value
        assert broadcast_from_main(lambda: value) is value
    finally:
        dist.destroy_process_group()
