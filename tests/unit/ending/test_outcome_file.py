import json
import math

import pytest

from trainer.ending.outcome_file import OUTCOME, RunningOutcome, facts_at, read_outcome, write_outcome, write_refusal
from trainer.ending.outcomes import ENDED, EXIT_CODES


@pytest.mark.parametrize("kind", EXIT_CODES)
def test_an_outcome_reads_back_with_its_exit_code(tmp_path, kind):
    write_outcome(tmp_path / "runs" / "mine", kind, step=7, reason="because", val_loss=1.5)
    outcome = read_outcome(tmp_path / "runs" / "mine")
    assert (outcome["outcome"], outcome["step"], outcome["reason"], outcome["val_loss"]) == (kind, 7, "because", 1.5)
    assert outcome["exit_code"] == EXIT_CODES[kind]


def test_only_what_asks_for_another_start_or_for_nothing_has_its_own_code():
    assert EXIT_CODES["finished"] == 0
    assert EXIT_CODES["interrupted"] == 75
    assert EXIT_CODES["refused"] == 2
    assert all(EXIT_CODES[kind] for kind in EXIT_CODES if kind != "finished")


def test_a_run_that_left_none_has_none(tmp_path):
    (tmp_path / "file").touch()
    assert read_outcome(tmp_path / "nowhere") is read_outcome(tmp_path / "file" / "mine") is None


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b"[]", b"{}", b'{"outcome": "finisheD"}', b'{"outcome": "finished"}']
)
def test_a_damaged_outcome_says_nothing(tmp_path, content):
    (tmp_path / OUTCOME).write_bytes(content)
    assert read_outcome(tmp_path) is None


def test_a_loss_that_is_no_number_is_not_written_as_one(tmp_path):
    write_outcome(tmp_path, "diverged", step=7, reason="because", loss=math.nan)
    json.loads((tmp_path / OUTCOME).read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert read_outcome(tmp_path)["loss"] is None


def test_an_outcome_of_another_name_is_a_mistake_in_the_program(tmp_path):
    with pytest.raises(ValueError, match="done"):
        write_outcome(tmp_path, "done", step=7, reason="because")


@pytest.mark.parametrize("kind", ENDED)
def test_a_refused_start_stands_beside_how_the_launch_before_ended(tmp_path, kind):
    write_outcome(tmp_path, kind, step=7, reason="because", sample="To be")
    before = read_outcome(tmp_path)
    for reason in ("no data", "no room"):
        write_outcome(tmp_path, "running", step=7, reason="starting")
        write_refusal(tmp_path, before, reason)
        after = read_outcome(tmp_path)
        attempt = after.pop("last_attempt")
        assert after == before
        assert (attempt["outcome"], attempt["reason"]) == ("refused", reason)


@pytest.mark.parametrize("kind", sorted(EXIT_CODES.keys() - set(ENDED)))
def test_a_refused_start_is_the_outcome_where_no_launch_had_ended(tmp_path, kind):
    write_outcome(tmp_path, kind, step=7, reason="because", loss=2.0)
    write_refusal(tmp_path, read_outcome(tmp_path), "no data")
    after = read_outcome(tmp_path)
    assert (after["outcome"], after["step"], after["reason"], after["loss"]) == ("refused", 7, "no data", 2.0)


def test_a_refused_first_start_is_the_outcome(tmp_path):
    write_refusal(tmp_path / "mine", None, "no data")
    assert read_outcome(tmp_path / "mine")["outcome"] == "refused"
    assert read_outcome(tmp_path / "mine")["step"] == 0


def test_losses_sample_and_export_hold_for_their_step_only():
    facts = {"loss": 1.0, "val_loss": 2.0, "sample": "To be", "exported": "there", "exported_step": 7, "untidy": "no"}
    before = {"outcome": "finished", "step": 7, "reason": "because", "pid": 3, **facts}
    assert facts_at(before, 7) == facts
    assert facts_at(before, 8) == {}
    assert facts_at(None, 7) == {}


def test_a_run_that_is_trained_says_the_step_it_is_at_in_place(tmp_path):
    write_outcome(tmp_path, "running", step=7, reason="training", sample="of step 7")
    running = RunningOutcome(tmp_path)
    running.step_taken(8)
    place, num_bytes = (tmp_path / OUTCOME).stat().st_ino, (tmp_path / OUTCOME).stat().st_size
    assert "sample" not in read_outcome(tmp_path), "it was of another step"
    for step in (9, 10, 15_000_000):
        running.step_taken(step)
        outcome = read_outcome(tmp_path)
        assert (outcome["outcome"], outcome["step"], outcome["reason"]) == ("running", step, "training")
    assert ((tmp_path / OUTCOME).stat().st_ino, (tmp_path / OUTCOME).stat().st_size) == (place, num_bytes)
    write_outcome(tmp_path, "finished", step=15_000_001, reason="all were taken")
    running.step_taken(15_000_002)
    running.close()
    assert read_outcome(tmp_path)["step"] == 15_000_001, "what came after it stays"
