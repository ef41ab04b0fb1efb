"""What surrounds the two runs: their settings, what is left behind, and a recipe that does not run at all."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.messages import names, refuses, says
from trainer import locks
from trainer.config.load import load
from trainer.ending.outcome_file import write_outcome
from trainer.errors import LaunchError
from trainer.tools.selftest import conduct
from trainer.tools.selftest.choose import Costs
from trainer.tools.selftest.conduct import MAX_ATTEMPTS, selftest, settings_for
from trainer.tools.selftest.result import Survived


@dataclass
class Launch:
    folder: Path
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)


def config(*overrides):
    return load("shakespeare", list(overrides)).config


def test_the_settings_of_the_runs_are_valid_and_reach_nothing_of_the_users():
    typed = [
        "checkpoint.mirror=s3://bucket/runs",
        "checkpoint.keep_every_steps=50",
        "resume_from_checkpoint=best",
        "schedule.warmup_steps=300",
    ]
    typed += ["profile.steps=[200,205]", "evaluation.tasks_every_steps=280"]
    settings = settings_for(config(*typed), 9, 3)
    resolved = config(*typed, *settings)
    assert (resolved.max_steps, resolved.checkpoint.every_steps, resolved.schedule.warmup_steps) == (9, 3, 9)
    assert resolved.checkpoint.mirror is None
    assert resolved.checkpoint.keep_every_steps is None
    assert resolved.profile.steps is None
    assert resolved.metrics.trackers == []
    assert resolved.resume_from_checkpoint == "latest"
    assert resolved.evaluation.tasks == []
    assert resolved.evaluation.sample_tokens == 0
    assert resolved.evaluation.num_sequences == 16


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


@pytest.mark.parametrize(
    ("outcome", "code", "words"),
    [
        ("refused", 2, ["the GPU is on fire"]),
        ("failed", 1, ["the GPU is on fire"]),
        (None, 1, ["exit code 1", "last words"]),
    ],
)
def test_a_recipe_that_does_not_run_straight_is_told_in_its_own_words(project, outcome, code, words):
    with refuses(LaunchError, "probe", *words) as caught:
        selftest(config(), fails(project, outcome), seconds=1, say=lambda line: None)
    assert caught.value.exit_code == code
    [log] = (project / "runs").glob(".selftest-*/probe.log")
    assert str(log) in str(caught.value)
    assert log.read_text() == "last words\n"


QUIET, BUSY = Costs(1.0, 0.01, 0.1), Costs(1.0, 0.2, 0.1)
LOST, KEPT = Survived(5, True, 1.0, 3, "resume exact"), Survived(6, False, 1.0, 6, None)


def attempts(monkeypatch, *proofs):
    """A test whose attempts come to these, each `(survived, differences)`, on a machine that was busy while it was measured."""
    left, steps = list(proofs), []

    def attempt(site, choice, costs, dice):
        steps.append(choice.steps)
        survived, differences = left.pop(0)
        return conduct.Proof(QUIET, choice, 1.0, survived, differences)

    monkeypatch.setattr(conduct.KillTest, "measure", lambda site: BUSY)
    monkeypatch.setattr(conduct.KillTest, "attempt", attempt)
    said = []
    return selftest(config(), fails(None, None), seconds=1, say=said.append), steps, said


def test_kills_that_came_too_late_are_tried_again_over_more_steps(project, monkeypatch):
    result, steps, said = attempts(monkeypatch, ([], []), ([LOST], []), ([KEPT, KEPT], []), ([LOST, KEPT], []))
    assert result.is_exact
    assert steps == sorted(set(steps))
    assert len(steps) == 4
    assert result.choice.steps == steps[-1]
    assert result.settings[0] == f"max_steps={steps[-1]}"
    assert result.costs == QUIET
    assert [
        names(line, *words)
        for line, words in zip(said[-3:], ([0, 2, steps[0]], [1, 2, steps[1]], ["none", 2]), strict=True)
    ] == [True] * 3


def test_when_no_attempt_is_enough_nothing_is_proved(project, monkeypatch):
    result, steps, _ = attempts(monkeypatch, *[([KEPT], [])] * MAX_ATTEMPTS)
    assert len(steps) == MAX_ATTEMPTS
    assert not result.is_exact
    says(result.differences[0], "prove")


def test_what_differs_is_told_and_not_tried_again(project, monkeypatch):
    result, steps, _ = attempts(
        monkeypatch, ([KEPT], ["step 3: loss is 1 in the killed run and 2 in the straight one"])
    )
    assert len(steps) == 1
    assert result.differences == ["step 3: loss is 1 in the killed run and 2 in the straight one"]


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
    assert not any(folder.exists() for folder in mine) and all(folder.exists() for folder in busy), (
        "a writer is still there"
    )
    assert kept.exists(), "it was kept to be looked at"
    says(said[0], "removed", ".selftest-dead")
    assert len(said) == 2


def test_a_test_that_runs_is_not_swept_by_another(project):
    seen = []

    def other(line):
        if not seen:
            seen.append(sorted(project.glob("*/.selftest-*")))
            with pytest.raises(LaunchError):
                selftest(config(), fails(project, None), seconds=1, say=lambda line: None)
            assert all(folder.exists() for folder in seen[0])
            assert len(seen[0]) == 2

    with pytest.raises(LaunchError):
        selftest(config(), fails(project, None), seconds=1, say=other)


def test_what_is_kept_to_be_looked_at_is_not_swept_later(project):
    for number in (1, 2):
        with pytest.raises(LaunchError):
            selftest(config(), fails(project, None), seconds=1, say=lambda line: None)
        assert len(list((project / "runs").glob(".selftest-*"))) == number
