"""A few faults of a month, one after another, on one run: the short version of month.py."""

import pytest

from tests.chaos.month import KINDS, daly, live, young

FEW = (4, ("rank", "writer", "nan_batch", "full_disk"), 25)
"""Kinds of which one needs a start, which is most of the time."""


# Where steps are quick, some kinds let more of them pass by than others: of all kinds there must be enough.
@pytest.mark.parametrize(
    ("num_faults", "kinds", "steps_a_fault"),
    [FEW, *(pytest.param(len(half), half, 80, marks=pytest.mark.long) for half in (KINDS[::2], KINDS[1::2]))],
    ids=["few", "one half of all", "the other half"],
)
def test_a_run_to_which_everything_happens_ends_as_if_nothing_had(tmp_path, num_faults, kinds, steps_a_fault):
    came = live(tmp_path, num_faults, seed=3, kinds=kinds, steps_a_fault=steps_a_fault)
    assert came["faults"] == num_faults
    assert set(came["faults_by_kind"]) == set(kinds)
    bad = sum(came["faults_by_kind"].get(kind, 0) for kind in ("nan_batch", "spike_batch"))
    assert len(came["batches_skipped"]) >= bad
    assert 0 < came["effective"] < 1


def test_young_and_daly_agree_where_failures_are_rare_and_say_less_where_they_are_not():
    """An hour between failures, a second a save: an interval of 85 s, of which 1.2 % are saves and 1.2 % lost."""
    assert young(3600.0, 0.0, 1.0) == pytest.approx(1 - 2 / 84.85, abs=1e-4)
    assert daly(3600.0, 0.0, 1.0) == pytest.approx(young(3600.0, 0.0, 1.0), abs=1e-3)
    assert young(3600.0, 360.0, 1.0) == pytest.approx(young(3600.0, 0.0, 1.0) - 0.1)
    assert daly(10.0, 0.0, 1.0) < 0.7
