"""Random kills of the trainer, its writer, both, or a rank: the short versions of kills.py."""

import pytest

from tests.chaos.kills import chaos

FEW = (6, ("llama-adamw",), {"runs": 1, "resumes": 2, "exact_verdicts": 1})
MANY = (20, ("llama-adamw", "gpt2-dropout-adamw-2-ranks"), {"runs": 2, "resumes": 8, "exact_verdicts": 4})
"""Kills, shapes, and the least that they come to."""


@pytest.mark.parametrize(
    ("num_kills", "shapes", "least"), [FEW, pytest.param(*MANY, marks=pytest.mark.long)], ids=["few", "many"]
)
def test_runs_that_are_killed_again_and_again_are_the_runs_that_were_never_killed(tmp_path, num_kills, shapes, least):
    tally = chaos(tmp_path, num_kills=num_kills, seed=5, max_steps=120, shapes=shapes)
    assert tally.num_kills >= num_kills
    assert {name: getattr(tally, name) >= number for name, number in least.items()} == dict.fromkeys(least, True)
