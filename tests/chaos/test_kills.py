"""Twenty random kills of the trainer, its writer, both, or a rank: the short version of kills.py."""

from tests.chaos.kills import chaos


def test_runs_that_are_killed_twenty_times_are_the_runs_that_were_never_killed(tmp_path):
    tally = chaos(tmp_path, num_kills=20, seed=5, max_steps=120, shapes=("llama-adamw", "gpt2-dropout-adamw-2-ranks"))
    assert tally.num_kills >= 20 and tally.runs >= 2 and tally.resumes >= 8 and tally.exact_verdicts >= 4
