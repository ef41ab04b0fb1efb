"""What surrounds the two runs: their settings, what is left behind, and a recipe that does not run at all."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from trainer import locks
from trainer.config.load import load
from trainer.errors import LaunchError
from trainer.metrics.outcome import write_outcome
from trainer.selftest.conduct import selftest, settings_for


@dataclass
class Launch:
    folder: Path
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)


def config(*overrides):
    return load("shakespeare", list(overrides)).config


def test_the_settings_of_the_runs_are_valid_and_reach_nothing_of_the_users():
    typed = ["checkpoint.second_place=s3://bucket/runs", "checkpoint.keep_every_steps=50", "resume_from_checkpoint=best", "schedule.warmup_steps=300"]
    typed += ["profile.steps=[200,205]", "evaluation.tasks_every_steps=280"]
    settings = settings_for(config(*typed), 9, 3)
    resolved = config(*typed, *settings)
    assert (resolved.max_steps, resolved.checkpoint.every_steps, resolved.schedule.warmup_steps) == (9, 3, 9)
    assert resolved.checkpoint.second_place is None and resolved.checkpoint.keep_every_steps is None
    assert resolved.profile.steps is None and resolved.metrics.trackers == [] and resolved.resume_from_checkpoint == "latest"
    assert resolved.evaluation.tasks == [] and resolved.evaluation.sample_tokens == 0 and resolved.evaluation.num_sequences == 16


def test_a_warm_up_that_fits_is_left_as_it_is():
    assert not any(word.startswith("schedule.") for word in settings_for(config("schedule.warmup_steps=5"), 9, 3))


def fails(home, outcome):
    """A plan whose launch writes an outcome, prints a line and fails."""

    def plan(words):
        values = dict(word.split("=", 1) for word in words)
        folder = Path(values["runs_folder"]) / values["name"]
        if outcome:
            write_outcome(folder, outcome, step=0, reason="the GPU is on fire")
        return Launch(folder, [sys.executable, "-c", "print('last words'); raise SystemExit(1)"])

    return plan


@pytest.mark.parametrize(("outcome", "code"), [("refused", 2), ("failed", 1), (None, 1)])
def test_a_recipe_that_does_not_run_straight_is_told_in_its_own_words(project, outcome, code):
    with pytest.raises(LaunchError, match="does not even run straight: the probe launch ended") as caught:
        selftest(config(), fails(project, outcome), seconds=1, say=lambda line: None)
    assert caught.value.exit_code == code
    assert ("the GPU is on fire" if outcome else "exit code 1 (last words)") in str(caught.value)
    [log] = (project / "runs").glob(".selftest-*/probe.log")
    assert str(log) in str(caught.value) and log.read_text() == "last words\n"


def test_an_interruption_leaves_nothing(project):
    def interrupt(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        selftest(config(), fails(project, None), seconds=1, say=interrupt)
    assert not list(project.glob("*/.selftest-*"))


# What an earlier test left


def left(project, name, *, held=None):
    """The two folders of a test that ended without removing them; `held`: a lock in them that a process still holds."""
    made = [project / kind / f".selftest-{name}" for kind in ("runs", "checkpoints")]
    for folder in made:
        (folder / "killed").mkdir(parents=True)
    (made[0] / ".lock").touch()
    return made, locks.take(made[1] / "killed" / ".lock") if held else None


def test_what_a_killed_test_left_is_swept_by_the_next_and_that_is_told(project):
    (mine, _), (busy, held) = left(project, "dead"), left(project, "busy", held=True)
    kept = project / "runs" / ".selftest-kept"
    kept.mkdir()
    said = []
    with pytest.raises(LaunchError):
        selftest(config(), fails(project, None), seconds=1, say=said.append)
    held.close()
    assert not any(folder.exists() for folder in mine) and all(folder.exists() for folder in busy), "a writer is still there"
    assert kept.exists(), "it was kept to be looked at"
    assert said[0] == "removed .selftest-dead, which a selftest that was killed has left" and len(said) == 2


def test_a_test_that_runs_is_not_swept_by_another(project):
    seen = []

    def other(line):
        if not seen:
            seen.append(sorted(project.glob("*/.selftest-*")))
            with pytest.raises(LaunchError):
                selftest(config(), fails(project, None), seconds=1, say=lambda line: None)
            assert all(folder.exists() for folder in seen[0]) and len(seen[0]) == 2

    with pytest.raises(LaunchError):
        selftest(config(), fails(project, None), seconds=1, say=other)


def test_what_is_kept_to_be_looked_at_is_not_swept_later(project):
    for number in (1, 2):
        with pytest.raises(LaunchError):
            selftest(config(), fails(project, None), seconds=1, say=lambda line: None)
        assert len(list((project / "runs").glob(".selftest-*"))) == number
