"""Both doors, `./launch.sh` and `trainer`, take the same words, and one form names a checkpoint."""

import contextlib
import io
import shlex

import pytest
import typer

from tests.commands import paragraph, trainer
from tests.messages import refuses
from trainer import cli, launcher
from trainer.cli import DOOR, app, with_command
from trainer.errors import ConfigError

COMMANDS = list(typer.main.get_command(app).commands)


@pytest.mark.parametrize(
    ("words", "through_launch_sh", "through_trainer"),
    [
        ([], ["launch"], []),
        (["shakespeare"], ["launch", "shakespeare"], ["launch", "shakespeare"]),
        (
            ["cpu", "mine.yaml", "seed=1"],
            ["launch", "cpu", "mine.yaml", "seed=1"],
            ["launch", "cpu", "mine.yaml", "seed=1"],
        ),
        (["seed=1"], ["launch", "seed=1"], ["launch", "seed=1"]),
        (["--dry-run", "cpu"], ["launch", "--dry-run", "cpu"], ["launch", "--dry-run", "cpu"]),
        (["recipes/report.yaml"], ["launch", "recipes/report.yaml"], ["launch", "recipes/report.yaml"]),
        (["report", "mine"], ["report", "mine"], ["report", "mine"]),
        (["-h"], ["-h"], ["-h"]),
        (["nothing-known"], ["launch", "nothing-known"], ["nothing-known"]),
    ],
)
def test_words_without_a_command_are_those_of_a_launch(words, through_launch_sh, through_trainer):
    assert with_command(words, COMMANDS, is_launch_sh=True) == through_launch_sh
    assert with_command(words, COMMANDS, is_launch_sh=False) == through_trainer


@pytest.mark.parametrize("is_launch_sh", [True, False])
def test_a_command_with_a_typing_mistake_is_no_cluster_file(is_launch_sh):
    with refuses(ConfigError, "'reprot'", "'report'"):
        with_command(["reprot", "mine"], COMMANDS, is_launch_sh=is_launch_sh)


@pytest.fixture(params=[None, "./launch.sh"], ids=["trainer", "launch.sh"])
def door(request, monkeypatch):
    """Which of the two was called."""
    monkeypatch.delenv(DOOR, raising=False)
    if request.param:
        monkeypatch.setenv(DOOR, request.param)
    return request.param or "trainer"


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_help_shows_every_command_under_the_name_that_was_called(door, word):
    said = trainer(word)
    assert said.code == 0
    assert f"Usage: {door} " in said.out
    assert all(f" {command} " in said.out for command in COMMANDS)


def test_every_command_is_there_through_both_doors(door, monkeypatch):
    for command in COMMANDS:
        if door != "trainer":
            monkeypatch.setenv(DOOR, door)
        said = trainer(command, "-h")
        assert said.code == 0 and f"Usage: {door} {command}" in said.out, command


def test_a_mistake_names_the_door_that_was_called(door):
    assert f"{door} report --help" in paragraph(trainer("report", "--bogus").err)


@pytest.mark.parametrize("words", [["shakespeare", "seed=3"], ["launch", "shakespeare", "seed=3"]])
def test_a_run_is_started_through_both_doors(door, words, monkeypatch):
    asked = []

    def plan(words):
        asked.append(words)
        raise ConfigError("seen")

    monkeypatch.setattr(launcher, "check_launch", plan)
    assert trainer(*words).code == 2
    assert asked == [["shakespeare", "seed=3"]]


def test_the_door_is_not_handed_on_to_processes_that_a_command_starts(monkeypatch):
    monkeypatch.setenv(DOOR, "./launch.sh")
    trainer("settings")
    assert DOOR not in cli.os.environ


@pytest.mark.parametrize(
    ("door", "program", "found", "typed"),
    [
        (None, "/a b/.venv/bin/trainer", None, ["/a b/.venv/bin/trainer"]),
        (None, "/bin/trainer", "/bin/trainer", ["trainer"]),
        ("/a b/launch.sh", "/x/trainer/__main__.py", None, ["/a b/launch.sh"]),
        ("./launch.sh", "x", None, ["./launch.sh"]),
    ],
)
def test_the_command_that_shows_a_form_can_be_pasted(monkeypatch, door, program, found, typed):
    """In a checkout whose environment is not activated there is no command `trainer`."""
    monkeypatch.setattr("shutil.which", lambda name: found)
    monkeypatch.setattr("sys.argv", [program, "bench", "precision", "--steps", "0"])
    monkeypatch.setenv(DOOR, door) if door else monkeypatch.delenv(DOOR, raising=False)
    said = io.StringIO()
    with (
        pytest.raises(SystemExit) as ended,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(said),
    ):
        cli.main()
    form = paragraph(said.getvalue()).rpartition("See: ")[2]
    assert ended.value.code == 2
    assert shlex.split(form) == [*typed, "bench", "precision", "--help"]


def test_help_has_the_commands_in_five_groups(door):
    said = trainer("--help").out
    assert [said.index(f"─ {group} ─") for group in cli.GROUPS] == sorted(
        said.index(f"─ {group} ─") for group in cli.GROUPS
    )
    assert list(cli.GROUPS) == ["Run", "Look", "Data", "Checkpoints", "Machine"]
    assert sorted(COMMANDS) == sorted(name for commands in cli.GROUPS.values() for name in commands)
