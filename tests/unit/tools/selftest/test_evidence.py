"""A difference that was planted is found and named."""

import json

import pytest

from tests.messages import says
from trainer.journal import Journal
from trainer.tools.selftest.evidence import (
    MOMENTS,
    WEIGHTS,
    Ran,
    Start,
    differences,
    first_difference,
    starts,
    verdict_problems,
)

STEPS = 9


def records(**changes):
    """The curve of a run, one number of step 5 changed."""
    steps = [
        {"step": n, "loss": 5.0 - n / 10, "grad_norm": 0.5, "data_digest": f"{n:04x}"} for n in range(1, STEPS + 1)
    ]
    steps[4].update(changes)
    return steps


def write_run(folder, curve, *, exact=True, verdict=True):
    """A run that was killed at step 5, came back at 3, and ended at the last step."""
    ran = Ran(folder / "runs", folder / "checkpoints")
    ran.run.mkdir(parents=True)
    (ran.run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in curve))
    journal = Journal(ran.run)
    journal.write("start", fingerprint="f")
    journal.write("save", step=3, digest="d")
    journal.write("start", fingerprint="f")
    journal.write("resume", step=3, digest="d")
    if verdict:
        journal.write("verdict", exact=exact, text="resume exact: 2/2" if exact else "resume NOT exact: at step 4")
    checkpoint = ran.checkpoints / f"step-{STEPS:08d}"
    checkpoint.mkdir(parents=True)
    for name in (WEIGHTS, MOMENTS):
        (checkpoint / name).write_bytes(bytes(range(256)) * 20)
    return ran


@pytest.fixture
def straight(tmp_path):
    return write_run(tmp_path / "straight", records())


def compare(straight, killed):
    return differences(straight, killed, step=STEPS, reached=[5])


def test_equal_runs_have_no_difference(straight, tmp_path):
    killed = write_run(tmp_path / "killed", [{**record, "step_seconds": 1.0} for record in records()])
    assert compare(straight, killed) == []


@pytest.mark.parametrize(
    ("name", "value"), [("loss", 4.500000001), ("grad_norm", None), ("data_digest", "beef"), ("val_loss", 4.0)]
)
def test_a_step_with_another_number_is_named_with_both(straight, tmp_path, name, value):
    [said] = compare(straight, write_run(tmp_path / "killed", records(**{name: value})))
    says(said, "step 5", name, value, "killed", "straight")


def test_steps_that_are_missing_or_stand_twice_are_told(straight, tmp_path):
    curve = records()
    assert "8 records" in compare(straight, write_run(tmp_path / "short", curve[:-1]))[0]
    says(compare(straight, write_run(tmp_path / "twice", [*curve[:5], *curve[4:]]))[0], "step 5", "step 6")


@pytest.mark.parametrize("name", [WEIGHTS, MOMENTS])
def test_one_flipped_bit_in_a_checkpoint_is_found_at_its_place(straight, tmp_path, name):
    killed = write_run(tmp_path / "killed", records())
    path = killed.checkpoints / f"step-{STEPS:08d}" / name
    content = bytearray(path.read_bytes())
    content[3000] ^= 1
    path.write_bytes(content)
    [said] = compare(straight, killed)
    says(said, name, "step-00000009", "byte 3,000")


def test_weights_that_differ_are_named_by_tensor(tmp_path):
    rans = []
    for name in ("straight", "killed"):
        ran = write_run(tmp_path / name, records())
        checkpoint = ran.checkpoints / f"step-{STEPS:08d}"
        value = b"\x01" if name == "straight" else b"\x02"
        header = json.dumps(
            {
                "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
                "b": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]},
            }
        )
        (checkpoint / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header.encode() + b"\x07" + value)
        rans.append(ran)
    [said] = compare(*rans)
    says(said, "1 of 2 tensors", "b")


def test_a_file_that_is_missing_is_told(straight, tmp_path):
    killed = write_run(tmp_path / "killed", records())
    (killed.checkpoints / f"step-{STEPS:08d}" / MOMENTS).unlink()
    [said] = compare(straight, killed)
    says(said, MOMENTS, "missing")


def test_a_resume_that_said_not_exact_or_nothing_is_told(straight, tmp_path):
    assert compare(straight, write_run(tmp_path / "not", records(), exact=False)) == [
        "after kill 1: resume NOT exact: at step 4"
    ]
    [said] = compare(straight, write_run(tmp_path / "silent", records(), verdict=False))
    says(said, "kill 1", "4 to 5")


def test_a_kill_right_after_a_checkpoint_has_nothing_to_compare():
    assert verdict_problems([Start(0, None, None), Start(5, None, None)], [5]) == []


def test_starts_are_read_from_the_journal_and_a_verdict_belongs_to_its_own():
    events = [
        {"event": "start"},
        {"event": "save", "step": 3},
        {"event": "start"},
        {"event": "resume", "step": 3},
        {"event": "verdict", "exact": True, "text": "fine"},
        {"event": "start"},
        {"event": "resume", "step": 6},
    ]
    assert starts(events) == [Start(0, None, None), Start(3, "fine", True), Start(6, None, None)]


def test_the_first_difference_of_two_files(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    for ours, theirs, place in (
        (b"abc", b"abc", None),
        (b"abc", b"abd", 2),
        (b"abc", b"ab", 2),
        (b"", b"x", 0),
        (b"x" * 3_000_000, b"x" * 2_999_999 + b"y", 2_999_999),
    ):
        a.write_bytes(ours)
        b.write_bytes(theirs)
        assert first_difference(a, b) == place
