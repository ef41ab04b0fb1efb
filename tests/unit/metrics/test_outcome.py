import json
import math

import pytest

from trainer.metrics.outcome import EXIT_CODES, OUTCOME, read_outcome, write_outcome


@pytest.mark.parametrize("kind", EXIT_CODES)
def test_an_outcome_reads_back_with_its_exit_code(tmp_path, kind):
    write_outcome(tmp_path / "runs" / "mine", kind, step=7, reason="because", val_loss=1.5)
    outcome = read_outcome(tmp_path / "runs" / "mine")
    assert (outcome["outcome"], outcome["step"], outcome["reason"], outcome["val_loss"]) == (kind, 7, "because", 1.5)
    assert outcome["exit_code"] == EXIT_CODES[kind]


def test_only_what_asks_for_another_start_or_for_nothing_has_its_own_code():
    assert EXIT_CODES["finished"] == 0 and EXIT_CODES["interrupted"] == 75 and EXIT_CODES["refused"] == 2
    assert all(EXIT_CODES[kind] for kind in EXIT_CODES if kind != "finished")


def test_a_run_that_left_none_has_none(tmp_path):
    assert read_outcome(tmp_path / "nowhere") is None


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b"{}", b'{"outcome": "finisheD"}'])
def test_a_damaged_outcome_says_nothing(tmp_path, content):
    (tmp_path / OUTCOME).write_bytes(content)
    assert read_outcome(tmp_path) is None


def test_a_loss_that_is_no_number_is_not_written_as_one(tmp_path):
    write_outcome(tmp_path, "diverged", step=7, reason="because", loss=math.nan)
    json.loads((tmp_path / OUTCOME).read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert read_outcome(tmp_path)["loss"] is None


def test_an_outcome_of_another_name_is_a_mistake_in_the_program(tmp_path):
    with pytest.raises(AssertionError):
        write_outcome(tmp_path, "done", step=7, reason="because")
