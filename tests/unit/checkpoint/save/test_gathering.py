"""Rank 0 says once whether ranks gather, whatever becomes of its snapshot: the others would wait for ever."""

from types import SimpleNamespace

import pytest

from trainer.checkpoint.save.gathering import Gathering


def gathering(*, gathers=True, hears=True):
    """What ranks do together, and what is said and gathered meanwhile."""
    said = []

    def broadcast(work):
        said.append(work())
        return hears

    layout = SimpleNamespace(gathers=gathers, gather=lambda *_: said.append("gathered"))
    ranks = SimpleNamespace(broadcast_from_main=broadcast)
    return Gathering(SimpleNamespace(layout=layout, ranks=ranks, model=None, optimizer=None)), said


def test_a_snapshot_that_is_taken_is_said_before_it():
    together, said = gathering()
    assert together.lead(lambda: together.begin() or "taken") == "taken"
    assert said == [True]


def test_one_that_is_left_out_or_fails_is_said_too():
    together, said = gathering()
    assert together.lead(lambda: "left out") == "left out"
    with pytest.raises(OSError):
        together.lead(lambda: open("/nowhere/at/all"))
    assert said == [False, False]


@pytest.mark.parametrize("hears", [True, False])
def test_another_rank_gathers_where_it_hears_so(hears):
    together, said = gathering(hears=hears)
    together.follow()
    assert said == [False, *(["gathered"] if hears else [])]


def test_where_rank_0_holds_everything_nothing_is_said():
    together, said = gathering(gathers=False)
    together.lead(lambda: together.begin())
    together.follow()
    assert said == []
