"""A stored measurement is found by its conditions and by nothing else, and one that cannot be read is as none."""

import json

import pytest

from tests.messages import logged, names
from trainer.precision.measured import Measured, find, place, store

CONDITIONS = {"device": "NVIDIA H100", "micro_batch": 8, "torch": "2.11.0"}
GAINS = {"current": 0.1, "block": -0.2}


def test_what_was_stored_is_found_again(tmp_path):
    path = store(tmp_path, CONDITIONS, "2026-11-25", GAINS, verdict="take it")
    assert find(tmp_path, CONDITIONS) == Measured("2026-11-25", GAINS)
    assert path == place(tmp_path, CONDITIONS)
    assert json.loads(path.read_text())["verdict"] == "take it"
    store(tmp_path, CONDITIONS, "2026-11-26", {})
    assert find(tmp_path, CONDITIONS) == Measured("2026-11-26", {}), "the newer stands in place of the older"


@pytest.mark.parametrize("change", [{"micro_batch": 4}, {"device": "NVIDIA H200"}, {"torch": "2.13.0"}, {"more": 1}])
def test_other_conditions_find_nothing(tmp_path, change):
    store(tmp_path, CONDITIONS, "2026-11-25", GAINS)
    assert find(tmp_path, CONDITIONS | change) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"date": "x"}',
        b'{"date": "x", "gains": [1]}',
        b'{"date": "x", "gains": {"current": "much"}}',
        b'{"date": "x", "gains": {"current": NaN}}',
    ],
)
def test_a_file_that_cannot_be_read_is_told_and_is_as_none(tmp_path, caplog, content):
    store(tmp_path, CONDITIONS, "2026-11-25", GAINS).write_bytes(content)
    assert find(tmp_path, CONDITIONS) is None
    logged(caplog, tmp_path)


def test_a_recipe_of_another_version_is_left_out(tmp_path):
    store(tmp_path, CONDITIONS, "2026-11-25", {"current": 0.1, "rowwise": 0.9})
    assert find(tmp_path, CONDITIONS).fastest == "current"


def test_of_two_equally_fast_the_first_in_the_order_of_recipes_is_taken():
    assert Measured("x", {"block": 0.1, "current": 0.1}).fastest == "current"
    assert Measured("x", {}).fastest is None


@pytest.mark.parametrize(("gain", "warns"), [(-0.07, True), (0.0, True), (0.019, True), (0.02, False), (0.3, False)])
def test_a_recipe_that_is_not_faster_is_warned_of_with_its_figure(gain, warns):
    warning = Measured("2026-11-25", {"current": gain}).warning("current")
    assert (warning is not None) is warns
    assert not warns or names(warning, "current scaling", f"{1 + gain:.2f}x", "bf16", "bench precision", "2026-11-25")


def test_nothing_is_warned_of_that_was_not_measured():
    assert Measured("x", {"current": -0.5}).warning("block") is None
