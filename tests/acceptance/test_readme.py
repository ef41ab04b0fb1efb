"""What the README and the guides say is true: commands parse, fragments are valid, names and links exist, tables are the code's."""

import ast
import io
import json
import re
import shlex
import shutil
import sys
from dataclasses import dataclass

import pytest
import typer
import yaml

import trainer as trainer_package
from tests.commands import paragraph, trainer
from tests.gpu import __main__ as gpu_run
from tests.gpu.record import RESULTS
from tests.gpu.table import passage
from tests.launching import PROJECT, train, write_recipe
from tests.messages import refuses
from trainer import journal, launcher
from trainer.cli import app, with_command
from trainer.cli.guide import FOLDER, PAGES, guide
from trainer.config.cluster import cluster_names
from trainer.config.load import load, recipe_names
from trainer.config.settings import settings_help, settings_table
from trainer.data.tokenizer import NAMES
from trainer.ending.outcomes import EXIT_CODES
from trainer.errors import ConfigError
from trainer.evaluation.items import item
from trainer.evaluation.next_lines import NAME
from trainer.evaluation.tasks import PUBLIC
from trainer.hub import is_hub_name
from trainer.model.presets import PRESETS


@dataclass(frozen=True)
class Found:
    """A command, or a fragment of a recipe, and the page on which it stands."""

    page: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}: {self.text.splitlines()[0]}"

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text, comments=True)


TEXTS = {"README": (PROJECT / "README.md").read_text(encoding="utf-8")}
TEXTS |= {name: (FOLDER / f"{name}.md").read_text(encoding="utf-8") for name in PAGES}


def blocks(kind: str) -> list[Found]:
    """The fenced blocks of a kind, of all pages."""
    fence = re.compile(rf"^```{kind}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [Found(page, block) for page, text in TEXTS.items() for block in fence.findall(text)]


COMMANDS = [Found(block.page, line) for block in blocks("bash") for line in block.text.splitlines() if line.strip()]

COMMANDS_IN_TABLES = [
    Found(page, command)
    for page, text in TEXTS.items()
    for command in re.findall(r"^\|.*\| `(\./launch\.sh .*?)` \|$", text, re.M)
]
"""What shows that a promise holds."""

OWN_FILES = {"mine.yaml", "MY.yaml"}
"""Recipes that a reader makes."""


def commands(*programs: str) -> list[Found]:
    found = [command for command in COMMANDS if command.words[0] in programs]
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
    """The recipe is a shipped one, or one that a page makes on the basis of a shipped one; the keys are settings."""
    if recipe.endswith("/config.yaml"):  # of a checkpoint
        return
    load("gpt2-124m" if recipe in OWN_FILES else recipe, overrides)


def check(words: list[str]) -> None:
    """The words of a command parse, and what they name exists."""
    context = parse(with_command(words, list(typer.main.get_command(app).commands), is_launch_sh=True))
    name, given = context.command.name, context.params
    if name in ("launch", "selftest", "precision", "doctor", "plan"):
        cluster, recipe, overrides = launcher.split_words(given["words"] or [])
        assert cluster is None or cluster in cluster_names()
        check_recipe_and_overrides(recipe, overrides)
    elif name == "train" and "recipe" in given:
        check_recipe_and_overrides(given["recipe"], given["overrides"] or [])
    elif name == "eval":
        asked = [task for tasks in given["tasks"] or [] for task in tasks.split(",")]
        assert all(task in (NAME, *PUBLIC) or task.endswith(".jsonl") for task in asked), asked
    elif name == "prepare":
        # "models/..." stands for a folder of the reader's own.
        assert (
            given["tokenizer"] in NAMES or is_hub_name(given["tokenizer"]) or given["tokenizer"].startswith("models/")
        )


def test_every_command_is_of_a_kind_that_is_tested_here():
    assert {command.words[0] for command in COMMANDS} == {
        "./launch.sh",
        "tests/run",
        "tests/gpu/run",
        "accelerate",
        "hf",
        "tail",
    }


@pytest.mark.parametrize("command", [*commands("./launch.sh"), *COMMANDS_IN_TABLES], ids=str)
def test_every_command_parses_and_names_what_is_there(command):
    words = command.words[1:]
    if words[:1] == ["--setup"]:
        assert f"\n{words[1]} =\n" in (PROJECT / "setup.cfg").read_text()
    else:
        check(words)


def test_a_command_that_is_wrong_would_be_found():
    for wrong in ("train shakespeare --nonsense", "checkpoints list mine", "export mine"):
        with pytest.raises(typer.BadParameter.__base__):
            check(wrong.split())
    with refuses(ConfigError, "'train'"):
        check(["trian", "shakespeare"])
    with refuses(ConfigError, "optimizer.lr"):
        check(["cpu", "mine.yaml", "optimizer.lrr=1"])


@pytest.mark.parametrize("command", commands("accelerate"), ids=str)
def test_the_bare_accelerate_launch_parses_and_names_a_shipped_cluster_file(command):
    from accelerate.commands.launch import launch_command_parser

    assert command.words[1] == "launch"
    parsed = launch_command_parser().parse_args(command.words[2:])
    assert (PROJECT / parsed.config_file).is_file()
    assert parsed.module
    assert parsed.training_script == "trainer"
    check(parsed.training_script_args)


@pytest.mark.parametrize("command", commands("hf"), ids=str)
def test_what_is_typed_for_the_hub_itself_parses(command):
    from huggingface_hub.cli.hf import app as hf

    context = hf.make_context("hf", command.words[1:])
    name, found, rest = hf.resolve_command(context, [*context._protected_args, *context.args])
    assert found.make_context(name, rest, parent=context).params


@pytest.mark.parametrize("command", commands("tests/gpu/run"), ids=str)
def test_every_gpu_run_names_parts_that_there_are(command):
    assert gpu_run.parse(command.words[1:])


def test_what_is_said_of_a_gpu_is_what_is_stored_or_that_nothing_is():
    stated = TEXTS["precision"].split("<!-- GPU -->\n")[1].split("\n<!-- /GPU -->")[0]
    assert stated == passage(RESULTS, list(gpu_run.PARTS)), (
        "run tests/gpu/run --table and put what it prints between the two marks of trainer/guides/precision.md"
    )


def test_what_they_call_besides_is_there():
    assert all((PROJECT / program).stat().st_mode & 0o111 for program in ("tests/run", "tests/gpu/run", "launch.sh"))


@pytest.mark.parametrize("fragment", blocks("yaml"), ids=str)
def test_every_fragment_is_a_valid_recipe(fragment, tmp_path):
    content = yaml.safe_load(fragment.text)
    content.setdefault("base", "gpt2-124m")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    load(str(tmp_path / "mine.yaml"))


def test_every_form_of_a_question_has_an_example():
    lines = [line for block in blocks("json") for line in block.text.splitlines()]
    forms = [item("guide", json.loads(line)).form for line in lines]
    assert sorted(forms) == ["last word", "multiple choice", "multiple contexts"]


def test_the_python_in_them_parses():
    for block in blocks("python"):
        ast.parse(block.text)


# What one types after a run, really typed

NEEDS_MORE = {"launch", "selftest", "bench", "tensorboard", "--setup"}
"""Commands that take longer than a test, or do not end; nor does one with --watch."""

NOT_HERE = ("hf:", "s3://", "hellaswag", "corpus/", "~/", "sets/", ".data/")
"""What is on a network, or is the reader's own."""


def can_be_typed(command: Found) -> bool:
    first = with_command(command.words[1:], list(typer.main.get_command(app).commands), is_launch_sh=True)[0]
    return first not in NEEDS_MORE and not any(part in command.text for part in (*NOT_HERE, "--watch"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a project with a finished run, `mine`, and what the commands of the pages name besides."""
    folder = tmp_path_factory.mktemp("project")
    mirror = {"mirror": str(folder / "mirror")}
    train(write_recipe(folder, name="mine", sequence_length=64, evaluation={"sample_tokens": 8}, checkpoint=mirror))
    (folder / "mine.yaml").write_text("base: shakespeare\nglobal_batch: 32\n")
    (folder / "prompts.jsonl").write_text('{"prompt": "Once"}\n')
    for other in ("mine-bf16", "mine-fp8"):
        shutil.copytree(folder / "runs" / "mine", folder / "runs" / other)
    return folder


@pytest.mark.long
@pytest.mark.parametrize("command", [command for command in commands("./launch.sh") if can_be_typed(command)], ids=str)
def test_a_command_that_needs_a_run_ends_well_with_one(command, trained, project, monkeypatch):
    shutil.copytree(trained, project, symlinks=True, dirs_exist_ok=True)
    for config in project.glob("runs/*/config.yaml"):
        config.write_text(config.read_text().replace(str(trained), str(project)))
    monkeypatch.chdir(project)
    if "fetch" in command.words:  # as after the loss of a disk
        shutil.rmtree(project / "checkpoints")
    words = [{"1500": "16", "/backup/mine": str(project / "backup")}.get(word, word) for word in command.words[1:]]
    said = trainer(*words)
    is_asked_in_vain = words[0] in ("save", "stop")  # of a run that has ended
    assert said.code == (2 if is_asked_in_vain else 1 if words[:2] == ["doctor", "4gpu_fp8"] else 0), said
    assert (said.err if is_asked_in_vain else said.out).strip()


# Names


def test_every_shipped_recipe_cluster_file_and_preset_is_named_and_only_they_are():
    table = TEXTS["run"].split("| cluster file | for |")[1].split("\n\n")[0]
    assert set(re.findall(r"`([\w]+)`", table)) == set(cluster_names())
    assert all(f"`{name}`" in TEXTS["README"] for name in (*cluster_names(), *recipe_names()))
    recipes = re.search(r"The shipped recipes are (.*?)\.\s", TEXTS["run"], re.DOTALL)[1]
    assert set(re.findall(r"`([\w.-]+)`", recipes)) == set(recipe_names())
    presets = re.search(r"`model.preset` is one of (.*?)\.\s", TEXTS["models"], re.DOTALL)[1]
    assert set(re.findall(r"`([\w.-]+)`", presets)) == set(PRESETS)


@pytest.mark.parametrize("page", TEXTS)
def test_every_link_and_every_path_of_the_checkout_is_there(page):
    folder = PROJECT if page == "README" else FOLDER
    for link in re.findall(r"\]\(([^)]+)\)", TEXTS[page]):
        assert link.startswith("https://") or (folder / link.partition("#")[0]).exists(), link
    for path in re.findall(r"`((?:trainer|tests|accelerate_configs)/[\w./]*)`", TEXTS[page]):
        assert (PROJECT / path).exists(), path


def test_every_file_that_the_map_of_the_package_names_is_there():
    paths = re.findall(r"[\w/]+(?:\.py|\.md|/)(?=[\s,;:)]|$)", trainer_package.__doc__)
    assert len(paths) > 20
    package = PROJECT / "trainer"
    unknown = [path for path in paths if not (package / path).exists() and not (PROJECT / path).exists()]
    found = {path: [str(each) for each in package.rglob(path)] for path in unknown}
    assert {path: places for path, places in found.items() if len(places) != 1} == {}, "a short name is of one file"


def test_every_name_that_contributing_gives_in_a_file_is_there():
    rows = re.findall(r"`([A-Z]\w+)(?:\(\.\.\.\))?` (?:in|of) `(trainer/[\w/.]+)`", TEXTS["contributing"])
    assert len(rows) >= 5
    for name, path in rows:
        assert re.search(rf"\b{name}\b", (PROJECT / path).read_text()), (name, path)


def test_every_place_of_a_run_that_the_readme_names_is_one_the_code_makes():
    """Under "Where things are" stands no file that nothing writes."""
    block = TEXTS["README"].split("## Where things are")[1].split("```")[1]
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (PROJECT / "trainer").rglob("*.py"))
    names = r"[\w.]+\.(?:json|jsonl|yaml|safetensors|bin|log)\b|\.(?:staging|damaged|abandoned|diverged)\b|\bexported\b|\.data\b"
    for name in re.findall(names, block):
        assert name.removeprefix(".") in sources, name
    for folder in ("checkpoints", "runs"):
        assert (PROJECT / folder).is_dir()
        assert f"{folder}/NAME/" in block


def test_the_exit_codes_are_those_of_the_code():
    said = TEXTS["README"].split("`./launch.sh` exits with")[1].split("\n\n")[0]
    assert {int(number) for number in re.findall(r"\b(\d+)\b(?= (?:when|for))", said)} == set(EXIT_CODES.values())
    table = TEXTS["run"].split("| exit code | meaning |")[1].split("\n\n")[0]
    assert {int(number) for number in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)} == set(EXIT_CODES.values())


def test_every_event_of_the_journal_is_named_in_monitoring():
    events = re.findall(r"^    (\w+)  ", journal.__doc__, re.MULTILINE)
    assert len(events) > 15
    said = TEXTS["monitoring"].split("Events of `journal.jsonl`")[1].split("\n\n")[0]
    assert [event for event in events if f"`{event}`" not in said] == []


# Settings


def test_the_table_of_settings_is_the_schemas():
    _, bar, table = TEXTS["settings"].partition("| setting |")
    assert bar + table == settings_table() + "\n", (
        "replace the table of trainer/guides/settings.md by what `./launch.sh settings` prints"
    )


def test_every_setting_stands_in_the_table():
    rows = settings_table().splitlines()[2:]
    assert [re.match(r"\| `([\w.]+)` \|", row)[1] for row in rows] == [name for name, _, _ in settings_help()]
    assert all(len(re.split(r"(?<!\\)\|", row)) == 5 for row in rows)


def test_the_keys_that_the_commands_mention_are_settings():
    names = {name for name, _, _ in settings_help()}
    for command in COMMANDS:
        for key in re.findall(r"(?<![\w./])((?:[a-z_]+\.)?[a-z_]+)=(?!\.\.\.\])", command.text):
            assert key in names, command


def test_the_settings_that_the_pages_mention_are_settings():
    names = {name for name, _, _ in settings_help()}
    sections = {name.partition(".")[0] for name in names if "." in name}
    for page, text in TEXTS.items():
        for section, rest in re.findall(r"`([a-z]+)\.([a-z_]+)(?:[:=][^`]*)?`", text):
            if section in sections and not rest.startswith("json"):
                assert f"{section}.{rest}" in names, (page, f"{section}.{rest}")


# Length, and the pages in the terminal


def test_the_readme_and_the_guides_are_short():
    limits = {"README": 160, "precision": 150, "models": 160, "settings": 10**6}
    assert {page: length for page, text in TEXTS.items() if (length := text.count("\n")) > limits.get(page, 120)} == {}


@pytest.mark.parametrize("page", TEXTS)
def test_nothing_is_left_over(page):
    assert not re.search(r"TODO|FIXME|XXX", TEXTS[page])
    assert TEXTS[page].isascii()


def test_every_guide_is_listed_and_begins_with_what_it_is_about():
    assert sorted(PAGES) == sorted(path.stem for path in FOLDER.glob("*.md"))
    listed = trainer("guide").out
    for name in PAGES:
        title, empty, summary, after = TEXTS[name].split("\n")[:4]
        assert title == f"# {name.capitalize()}"
        assert summary
        assert not empty
        assert not after
        assert re.search(rf"^ *{name} .*{re.escape(summary)}$", listed, re.MULTILINE)
        assert f"(trainer/guides/{name}.md)" in TEXTS["README"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("name", ["run", "settings"])
def test_a_guide_goes_into_a_pipe_as_it_is_written_and_is_set_for_a_terminal(name, monkeypatch):
    assert trainer("guide", name).out == TEXTS[name]
    monkeypatch.setattr(sys, "stdout", Terminal())
    guide(name)
    shown = sys.stdout.getvalue()
    assert name.capitalize() in shown
    assert "|---" not in shown
    assert "| --- " not in shown
    assert len(shown) > 1000


def test_a_guide_that_there_is_not_is_refused_with_the_close_ones():
    said = trainer("guide", "chekpoints")
    assert said.code == 2
    assert "'chekpoints'" in paragraph(said.err)
    assert " guide checkpoints" in said.err
    said = trainer("guide", "transformerengine")
    assert said.code == 2
    assert " guide precision" in paragraph(said.err)
    assert trainer("guide", "no such word").code == 2
