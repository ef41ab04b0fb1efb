import math

import pytest

from trainer.metrics.replay import ReplayProof


def record(step, **changes):
    return {
        "step": step,
        "data_digest": f"d{step}",
        "loss": step / 3,
        "grad_norm": step / 7,
        "replay_key": "key",
        **changes,
    }


def test_steps_that_agree_to_the_last_bit_prove_an_exact_resume():
    proof = ReplayProof([record(step) for step in range(1, 9)], 5, "key")
    assert proof.announcement == "3 steps are taken again and compared with what was written of them before"
    assert [proof.compare(record(step)) for step in (6, 7)] == [None, None]
    assert proof.compare(record(8)) == "resume exact: 3/3 replayed steps bit-identical"
    assert proof.compare(record(9)) is None


@pytest.mark.parametrize(
    ("at", "changes", "words"),
    [
        (
            6,
            {"data_digest": "other", "loss": 9.0},
            "at step 6 data_digest other instead of d6, loss 9.0 instead of 2.0 (other data was read)",
        ),
        (6, {"loss": 2.0000000000000004}, "weights or random state were not restored"),
        (7, {"loss": math.nextafter(7 / 3, 3)}, "1 steps agreed: moments or random state"),
        (7, {"grad_norm": None}, "at step 7 grad_norm None instead of 1.0 (the data is the same and 1 steps agreed"),
    ],
)
def test_the_first_difference_is_named_with_its_likely_cause(at, changes, words):
    proof = ReplayProof([record(step) for step in (6, 7, 8)], 5, "key")
    said = [proof.compare(record(step, **(changes if step == at else {}))) for step in (6, 7, 8)]
    (verdict,) = [text for text in said if text]
    assert said.index(verdict) == at - 6 and verdict.startswith("resume NOT exact: ") and words in verdict


def test_of_a_step_that_was_lost_twice_the_later_record_counts():
    proof = ReplayProof([record(6, loss=1.0), record(6)], 5, "key")
    assert proof.compare(record(6)) == "resume exact: 1/1 replayed steps bit-identical"


def test_losses_that_were_no_numbers_agree():
    proof = ReplayProof([record(6, loss=None, grad_norm=None)], 5, "key")
    assert proof.compare(record(6, loss=None, grad_norm=None)).startswith("resume exact")


def test_evaluations_and_earlier_steps_are_not_compared():
    proof = ReplayProof([record(5), {"step": 6, "val_loss": 1.0}], 5, "key")
    assert proof.announcement is None and proof.compare(record(6)) is None


def test_steps_of_other_settings_are_said_to_be_beyond_comparison():
    proof = ReplayProof([record(6), record(7)], 5, "another key")
    assert (
        proof.announcement
        == "2 lost steps cannot be compared: settings, versions or processes are not those they ran with"
    )
    assert proof.compare(record(6)) is None
