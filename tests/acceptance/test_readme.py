"""What the README says is true: its commands parse, its fragments are valid, its names exist, its table is the schema's."""

import ast
import json
import re
import shlex

import pytest
import typer
import yaml

from tests.gpu import __main__ as gpu_run
from tests.gpu.record import RESULTS
from tests.gpu.table import passage
from tests.launching import PROJECT
from tests.messages import refuses
from trainer import supervise
from trainer.cli import app
from trainer.config.cluster import cluster_names
from trainer.config.load import load, recipe_names
from trainer.config.settings import settings_help, settings_table
from trainer.errors import ConfigError
from trainer.evaluation.items import item
from trainer.evaluation.next_lines import NAME
from trainer.evaluation.tasks import PUBLIC
from trainer.metrics.outcome import EXIT_CODES

README = (PROJECT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = [line.strip() for kind, block in BLOCKS if kind == "bash" for line in block.splitlines() if line.strip()]
FRAGMENTS = [block for kind, block in BLOCKS if kind == "yaml"]

OWN_FILES = {"mine.yaml", "mine"}
"""Names in the README that stand for what a reader makes."""


def words_of(command: str) -> list[str]:
    return shlex.split(command, comments=True)


def commands(*programs: str) -> list[str]:
    found = [command for command in COMMANDS if words_of(command)[0] in programs]
    assert found, programs
    return found


def parse(words: list[str]) -> typer.Context:
    """Parses the words of a command as typer does before it runs it; an unknown option or sub-command raises."""
    command = typer.main.get_command(app)
    context = command.make_context("trainer", list(words))
    while hasattr(command, "commands"):
        name, command, rest = command.resolve_command(context, context._protected_args + context.args)
        assert command is not None, name
        context = command.make_context(name, rest, parent=context)
    return context


def check_recipe_and_overrides(recipe: str, overrides: list[str]) -> None:
    """The recipe is a shipped one, or one that the README makes on the basis of a shipped one; the keys are settings."""
    if recipe in OWN_FILES:
        assert f"# {recipe}" in README
        recipe = "gpt2-124m"
    load(recipe, overrides)


def test_every_command_is_of_a_kind_that_is_tested_here():
    programs = {words_of(command)[0] for command in COMMANDS}
    assert programs == {"./launch.sh", "tests/run", "tests/gpu/run", ".venv/bin/trainer", "accelerate", "tail"}


@pytest.mark.parametrize("command", commands(".venv/bin/trainer"))
def test_every_trainer_command_parses(command):
    context = parse(words_of(command)[1:])
    if context.command.name in ("selftest", "precision"):
        supervise.split_words(context.params["words"])
    if context.command.name == "train":
        check_recipe_and_overrides(context.params["recipe"], context.params["overrides"] or [])
    if context.command.name == "eval":
        names = [name for words in context.params["tasks"] for name in words.split(",")]
        assert all(name in (NAME, *PUBLIC) or name.endswith(".jsonl") for name in names), names
    if context.command.name == "prepare":
        from trainer.data.tokenizer import NAMES

        assert context.params["tokenizer"] in NAMES


def test_a_command_that_is_wrong_would_be_found():
    for wrong in ("train shakespeare --nonsense", "trian shakespeare", "checkpoints list mine", "export mine"):
        with pytest.raises(typer.BadParameter.__base__):
            parse(wrong.split())
    with refuses(ConfigError, "optimizer.lr"):
        check_recipe_and_overrides("mine.yaml", ["optimizer.lrr=1"])


@pytest.mark.parametrize("command", commands("./launch.sh"))
def test_every_launch_parses_and_names_what_is_shipped(command):
    words = words_of(command)[1:]
    if words[:1] == ["--setup"]:
        assert f"\n{words[1]} =\n" in (PROJECT / "setup.cfg").read_text()
        return
    is_other = words[:1] and words[0] in ("bench", "doctor", "selftest", "tensorboard")
    assert not is_other or words[0] in (PROJECT / "launch.sh").read_text()
    context = parse(words if is_other else ["launch", *words])
    if context.command.name == "tensorboard":
        return
    cluster, recipe, overrides = supervise.split_words(context.params["words"] or [])
    assert cluster is None or cluster in cluster_names()
    check_recipe_and_overrides(recipe, overrides)


@pytest.mark.parametrize("command", commands("accelerate"))
def test_the_bare_accelerate_launch_parses_and_names_a_shipped_cluster_file(command):
    from accelerate.commands.launch import launch_command_parser

    words = words_of(command)
    assert words[1] == "launch"
    parsed = launch_command_parser().parse_args(words[2:])
    assert (PROJECT / parsed.config_file).is_file() and parsed.module and parsed.training_script == "trainer"
    context = parse(parsed.training_script_args)
    if context.command.name == "train":
        check_recipe_and_overrides(context.params["recipe"], context.params["overrides"])


@pytest.mark.parametrize("command", commands("tests/gpu/run"))
def test_every_gpu_run_names_parts_that_there_are(command):
    assert gpu_run.parse(words_of(command)[1:])


def test_what_it_says_of_a_gpu_is_what_is_stored_or_that_nothing_is():
    stated = README.split("<!-- GPU -->\n")[1].split("\n<!-- /GPU -->")[0]
    assert stated == passage(RESULTS, list(gpu_run.PARTS)), (
        "run tests/gpu/run --table and put what it prints between the two marks"
    )


def test_what_it_calls_besides_is_there():
    assert all((PROJECT / program).stat().st_mode & 0o111 for program in ("tests/run", "tests/gpu/run", "launch.sh"))


@pytest.mark.parametrize("fragment", FRAGMENTS, ids=lambda text: text.split("\n")[0])
def test_every_fragment_is_a_valid_recipe(fragment, tmp_path):
    content = yaml.safe_load(fragment)
    content.setdefault("base", "gpt2-124m")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    load(str(tmp_path / "mine.yaml"))


def test_every_question_in_it_is_one():
    lines = [line for kind, block in BLOCKS if kind == "json" for line in block.splitlines()]
    assert {item("README", json.loads(line)).form for line in lines} == {
        "multiple choice",
        "multiple contexts",
        "last word",
    }


def test_the_python_in_it_parses():
    for block in (block for kind, block in BLOCKS if kind == "python"):
        ast.parse(block)


# Names


def test_every_shipped_recipe_and_cluster_file_is_named_and_only_they_are():
    for name in (*recipe_names(), *cluster_names()):
        assert f"`{name}`" in README, f"{name} is shipped and not named"
    table = README.split("| cluster file | for |")[1].split("\n\n")[0]
    assert set(re.findall(r"`([\w]+)`", table)) == set(cluster_names())
    sentence = re.search(r"Begin with a shipped one \((.*?)\)", README, re.DOTALL)[1]
    assert set(re.findall(r"`([\w.-]+)`", sentence)) == set(recipe_names())


def test_every_path_of_the_checkout_that_it_names_is_there():
    named = re.findall(r"`((?:trainer|tests|accelerate_configs)/[\w./]*)`", README)
    assert len(named) >= 8
    for path in named:
        assert (PROJECT / path).exists(), path


def test_every_place_of_a_run_that_it_names_is_one_the_code_makes():
    """Under "Where things are" stands no file that nothing writes."""
    block = README.split("## Where things are")[1].split("```")[1]
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (PROJECT / "trainer").rglob("*.py"))
    for name in re.findall(
        r"[\w.]+\.(?:json|jsonl|yaml|safetensors|bin|log)\b|\.(?:staging|damaged|abandoned)\b|\bexported\b|\.data\b",
        block,
    ):
        assert name.removeprefix(".") in sources.replace('"damaged"', "damaged"), name
    for folder in ("checkpoints", "runs"):
        assert (PROJECT / folder).is_dir() and f"{folder}/NAME/" in block


def test_the_exit_codes_are_those_of_the_code():
    paragraph = README.split("`./launch.sh` exits with")[1].split("\n\n")[0]
    codes = {int(number) for number in re.findall(r"\b(\d+)\b(?= (?:when|for))", paragraph)}
    assert codes == set(EXIT_CODES.values())


# Settings


def test_the_table_of_settings_is_the_schemas():
    table = README.split("<!-- SETTINGS -->\n")[1].split("\n<!-- /SETTINGS -->")[0]
    assert table == settings_table(), "run `trainer settings` and put what it prints between the two marks"


def test_every_setting_stands_in_the_table():
    rows = settings_table().splitlines()[2:]
    assert [re.match(r"\| `([\w.]+)` \|", row)[1] for row in rows] == [name for name, _, _ in settings_help()]
    assert all(len(re.split(r"(?<!\\)\|", row)) == 5 for row in rows)


def test_the_keys_that_the_text_mentions_are_settings():
    names = {name for name, _, _ in settings_help()}
    for key in re.findall(r"(?<![\w./])((?:[a-z_]+\.)?[a-z_]+)=(?!\.\.\.\])", "\n".join(COMMANDS)):
        assert key in names, key


def test_the_readme_says_nothing_that_is_left_over():
    assert not re.search(r"TODO|FIXME|XXX", README)
    assert README.isascii()
