"""Which rank computes otherwise, and what of a machine is not as a long run needs it."""

import resource

import pytest

from trainer import host_checks
from trainer.errors import LaunchError
from trainer.run import health


@pytest.mark.parametrize(
    ("digests", "wrong"),
    [("aaa", []), ("aba", [1]), ("ab", [0, 1]), ("abc", [0, 1, 2]), ("a", []), ("aabb", [0, 1, 2, 3])],
)
def test_the_minority_differs_and_all_where_there_is_none(digests, wrong):
    assert health.differing(dict(enumerate(digests))) == wrong


def test_a_rank_that_computes_other_bits_is_named_and_another_chip_is_not_compared(monkeypatch):
    monkeypatch.setattr(health, "all_gather", lambda own: [("H100", "a"), ("H100", "a"), ("A100", "b")])
    assert health.compare_ranks("a", "H100") == [2]
    monkeypatch.setattr(health, "all_gather", lambda own: [("H100", "a"), ("H100", "c"), ("H100", "a")])
    with pytest.raises(LaunchError, match="rank 1 computed"):
        health.compare_ranks("a", "H100")


@pytest.mark.parametrize(("seconds", "is_fine"), [(0.5, True), (-60.0, False), (60.0, False)])
def test_clocks_may_be_seconds_apart(seconds, is_fine):
    assert host_checks.clock_check("clock", seconds).is_fine is is_fine


def test_limits_that_are_too_small_come_with_what_was_expected_and_a_remedy(tmp_path, monkeypatch):
    limits = {resource.RLIMIT_NOFILE: 64, resource.RLIMIT_MEMLOCK: 1 << 20}
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limits[which], limits[which]))
    found = {check.name.split(" (")[0]: check for check in host_checks.host_checks(tmp_path, pins_memory=True)}
    assert found["clock against the file system's"].is_fine
    for name in ("open files", "locked memory"):
        check = found[name]
        assert not check.is_fine
        assert check.expected in check.words and check.remedy in check.words
    without_gpus = host_checks.host_checks(tmp_path, pins_memory=False)
    assert without_gpus[-1].is_fine
