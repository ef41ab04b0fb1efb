import math

import pytest

from tests.messages import says
from trainer.replay import FACTS, UNRECORDED, ReplayProof, fact_changes, read_facts, remember_facts


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
    assert proof.announcement.startswith("3 steps ")
    assert "compared" in proof.announcement
    assert [proof.compare(record(step)) for step in (6, 7)] == [None, None]
    says(proof.compare(record(8)), "exact", "3/3")
    assert proof.compare(record(9)) is None


@pytest.mark.parametrize(
    ("at", "changes", "words"),
    [
        (
            6,
            {"data_digest": "other", "loss": 9.0},
            ["step 6", "data_digest", "other", "d6", "loss", "9.0", "2.0", "data was read"],
        ),
        (6, {"loss": 2.0000000000000004}, ["weights", "random state"]),
        (7, {"loss": math.nextafter(7 / 3, 3)}, ["1 step", "moments", "random state"]),
        (7, {"grad_norm": None}, ["step 7", "grad_norm", "None", "1.0", "data is the same", "1 step"]),
    ],
)
def test_the_first_difference_is_named_with_its_likely_cause(at, changes, words):
    proof = ReplayProof([record(step) for step in (6, 7, 8)], 5, "key")
    said = [proof.compare(record(step, **(changes if step == at else {}))) for step in (6, 7, 8)]
    (verdict,) = [text for text in said if text]
    assert said.index(verdict) == at - 6
    says(verdict, "NOT exact")
    says(verdict, *words)


def test_of_a_step_that_was_lost_twice_the_later_record_counts():
    proof = ReplayProof([record(6, loss=1.0), record(6)], 5, "key")
    says(proof.compare(record(6)), "exact", "1/1")


def test_losses_that_were_no_numbers_agree():
    proof = ReplayProof([record(6, loss=None, grad_norm=None)], 5, "key")
    assert proof.compare(record(6, loss=None, grad_norm=None)).startswith("resume exact")


def test_evaluations_and_earlier_steps_are_not_compared():
    proof = ReplayProof([record(5), {"step": 6, "val_loss": 1.0}], 5, "key")
    assert proof.announcement is None
    assert proof.compare(record(6)) is None


def test_steps_of_other_settings_are_beyond_comparison_and_the_facts_that_changed_are_named():
    earlier = {"key": {"global_batch": 8, "optimizer.lr": 0.003, "torch": "2.12.0", "seed": 1}}
    now = {"global_batch": 16, "optimizer.lr": 0.003, "torch": "2.13.0", "seed": 1}
    proof = ReplayProof([record(6), record(7)], 5, "another key", now, earlier)
    says(proof.announcement, "2 lost steps")
    assert "global_batch 8 -> 16" in proof.announcement
    assert "torch 2.12.0 -> 2.13.0" in proof.announcement
    assert "optimizer.lr" not in proof.announcement
    assert "seed" not in proof.announcement
    assert proof.compare(record(6)) is None


def test_of_a_launch_that_wrote_down_its_key_alone_the_checkpoint_tells_the_facts(monkeypatch):
    monkeypatch.setitem(UNRECORDED, "rounding", "to zero")
    now = {"processes": 2, "rounding": "to even", "device": "cpu, 2 threads"}
    proof = ReplayProof([record(6)], 5, "another key", now, {}, {"processes": 1})
    says(proof.announcement, "processes 1 -> 2", "rounding to zero", "-> to even")
    assert "device" not in proof.announcement
    unknown = ReplayProof(
        [record(6)], 5, "another key", {"processes": 2, "device": "cpu", "unused": None}, {}, {"processes": 2}
    ).announcement
    assert "device" in unknown
    assert "processes" not in unknown
    assert "unused" not in unknown
    assert (
        "rounding"
        not in ReplayProof([record(6)], 5, "other", {"rounding": None, "seed": 2}, {}, {"seed": 1}).announcement
    )


def test_steps_of_two_launches_are_compared_where_they_can_be_and_the_others_are_counted():
    lost = [record(6, replay_key="other"), record(7, replay_key="other"), record(6)]
    proof = ReplayProof(lost, 5, "key", {"seed": 1}, {"other": {"seed": 2}})
    says(proof.announcement, "1 step")
    says(proof.announcement, "1 lost step")
    assert "seed 2 -> 1" in proof.announcement
    assert proof.compare(record(6)).startswith("resume exact: 1/1")


def test_a_fact_that_does_not_apply_is_none_and_a_digest_is_shown_by_its_beginning():
    before, now = {"a": None, "b": "f" * 64, "c": 1}, {"b": "e" * 64, "c": None}
    assert fact_changes(before, now) == [f"b {'f' * 12}... -> {'e' * 12}...", "c 1 -> none"]


def test_facts_are_written_down_once_a_key_and_a_damaged_line_costs_only_itself(tmp_path):
    for key, facts in (("k1", {"seed": 1}), ("k2", {"seed": 2}), ("k1", {"seed": 1})):
        remember_facts(tmp_path, key, facts)
    assert len((tmp_path / FACTS).read_text().splitlines()) == 2
    with open(tmp_path / FACTS, "a") as file:
        file.write('{"replay_key": "k3", "fa')
    remember_facts(tmp_path, "k4", {"seed": 4})
    assert read_facts(tmp_path) == {"k1": {"seed": 1}, "k2": {"seed": 2}, "k4": {"seed": 4}}
    assert read_facts(tmp_path / "absent") == {}
