"""How long a run is: exactly one of max_steps, max_tokens and max_epochs counts, and it becomes max_steps."""

import pytest
import yaml

from tests.commands import trainer
from tests.messages import says
from trainer import launcher
from trainer.config.length import is_due
from trainer.config.load import dump, load, load_resolved
from trainer.config.schema import Config
from trainer.data.corpus import count_sequences, open_corpus
from trainer.errors import ConfigError

WHOLE = "global_batch: 8\nmicro_batch: 4\nsequence_length: 16\ndata: {corpus: shakespeare}\nmodel: {preset: llama-shakespeare}\n"


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe, over one before it where its base is named, and gives its path."""

    def write(lines, name="mine", base=None):
        path = tmp_path / f"{name}.yaml"
        path.write_text(f"base: {base}.yaml\n{lines}\n" if base else f"{WHOLE}{lines}\n", encoding="utf-8")
        return str(path)

    return write


def a_thousand(config: Config) -> int:
    """Stands for the size of the data."""
    assert config.data.corpus == "shakespeare"
    assert config.sequence_length == 16
    return 1000


def steps_of(path, *overrides):
    config = load(path, overrides, a_thousand).config
    assert (config.max_tokens, config.max_epochs) == (None, None)
    return config.max_steps


@pytest.mark.parametrize(
    ("line", "steps"),
    [
        ("max_steps: 7", 7),
        ("max_tokens: 1280", 10),
        ("max_tokens: 1281", 11),
        ("max_tokens: 1", 1),
        ("max_tokens: 1e6", 7813),
        ("max_epochs: 1", 125),
        ("max_epochs: 2.5", 313),
        ("max_epochs: 0.1", 13),
        ("max_epochs: 0.8", 100),
        ("max_epochs: 1e-9", 1),
    ],
)
def test_tokens_and_epochs_become_the_steps_that_take_no_less(recipe, line, steps):
    assert steps_of(recipe(line)) == steps


def test_the_size_of_the_data_is_asked_for_only_where_it_is_needed(recipe):
    def nobody(config):
        raise AssertionError("asked")

    assert load(recipe("max_tokens: 1280"), (), nobody).config.max_steps == 10
    assert load(recipe("max_epochs: 3"), ["max_steps=5"], nobody).config.max_steps == 5


SAID = ["max_steps=7", "max_tokens=1280", "max_epochs=1"]
STEPS = [7, 10, 125]


@pytest.mark.parametrize("below", SAID)
@pytest.mark.parametrize(("above", "steps"), list(zip(SAID, STEPS)))
def test_one_from_a_stronger_place_replaces_another(recipe, below, above, steps):
    recipe(below.replace("=", ": "), "ground")
    top = recipe(above.replace("=", ": "), "top", "ground")
    assert steps_of(top) == steps_of(recipe(below.replace("=", ": ")), above) == steps
    middle = recipe("seed: 3", "middle", "ground")
    assert steps_of(middle, above) == steps
    assert steps_of(middle) == STEPS[SAID.index(below)]


@pytest.mark.parametrize(("first", "second"), [(SAID[0], SAID[1]), (SAID[0], SAID[2]), (SAID[1], SAID[2])])
def test_two_in_one_place_are_refused_with_both(recipe, first, second):
    lines = f"{first}\n{second}".replace("=", ": ")
    for path, overrides, where in (
        (recipe(lines, "both"), [], "both.yaml:6"),
        (recipe("max_steps: 3"), [first, second], "override"),
    ):
        with pytest.raises(ConfigError) as caught:
            load(path, overrides, a_thousand)
        (problem,) = caught.value.problems
        assert all(word in problem for word in (*first.split("="), *second.split("="), where))


def test_two_in_a_weaker_place_are_replaced_too(recipe):
    assert steps_of(recipe("max_steps: 3\nmax_tokens: 9"), "max_epochs=1") == 125


def test_an_empty_one_says_nothing(recipe):
    assert steps_of(recipe("max_steps: 3\nmax_tokens: ~"), "max_epochs=") == 3
    assert steps_of(recipe("max_tokens: 1280"), "max_tokens=5", "max_tokens=", "max_steps=4") == 4
    with pytest.raises(ConfigError) as caught:
        load(recipe("max_tokens: 1280"), ["max_tokens="])
    (problem,) = caught.value.problems
    says(problem, "max_steps", "not set")
    assert "max_tokens" in problem
    assert "max_epochs" in problem


@pytest.mark.parametrize(
    "override",
    [
        "max_tokens=0",
        "max_tokens=many",
        "max_tokens=1.5",
        "max_epochs=0",
        "max_epochs=-1",
        "max_epochs=.inf",
        "max_epochs=yes",
    ],
)
def test_a_length_that_is_none_is_refused(recipe, override):
    with pytest.raises(ConfigError) as caught:
        load(recipe("max_steps: 3"), [override], a_thousand)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{override.partition('=')[0]} (override) is ")


def test_what_does_not_fit_the_resolved_steps_is_refused(recipe):
    with pytest.raises(ConfigError) as caught:
        load(recipe("max_tokens: 1280\nschedule: {warmup_steps: 11}"))
    (problem,) = caught.value.problems
    assert "schedule.warmup_steps 11" in problem
    assert "max_steps 10" in problem
    assert load(recipe("max_tokens: 1280\nschedule: {warmup_steps: 10}")).config.max_steps == 10


def test_the_resolved_steps_say_where_they_came_from(recipe):
    origin = load(recipe("max_tokens: 1280")).origins["max_steps"]
    assert "max_tokens" in origin
    assert "mine.yaml:6" in origin
    assert "max_epochs" in load(recipe("max_tokens: 1280"), ["max_epochs=1"], a_thousand).origins["max_steps"]


@pytest.mark.parametrize("line", ["max_tokens: 1280", "max_epochs: 2", "max_steps: 9"])
def test_the_stored_config_has_the_steps_and_loads_by_itself_and_as_a_base(recipe, tmp_path, line):
    config = load(recipe(line), (), a_thousand).config
    (tmp_path / "config.yaml").write_text(dump(config), encoding="utf-8")
    assert load_resolved(tmp_path / "config.yaml") == config
    assert yaml.safe_load(dump(config))["max_steps"] == config.max_steps
    assert load(str(tmp_path / "config.yaml"), ["max_tokens=256"]).config.max_steps == 2


def test_an_epoch_is_that_of_the_runs_own_data():
    wanted = load("shakespeare").config
    sequences = open_corpus(wanted.data, wanted.sequence_length).train.num_sequences
    assert count_sequences(wanted) == sequences
    plan = launcher.check_launch(["cpu", "shakespeare", "max_epochs=2", "name=two-epochs"])
    assert plan.config.max_steps == -(-2 * sequences // wanted.global_batch)


def test_a_person_sees_the_steps_and_what_they_came_from():
    shown = trainer("train", "shakespeare", "max_tokens=1e6", "--show-config")
    (line,) = [line for line in shown.out.splitlines() if line.startswith("max_steps ")]
    assert shown.code == 0
    assert "489" in line
    assert "max_tokens" in line


@pytest.mark.parametrize(("rank", "says"), [("0", True), ("1", False)])
def test_a_run_says_once_how_its_steps_came_about(monkeypatch, rank, says):
    trained = []
    monkeypatch.setattr("trainer.session.run_session", lambda config: trained.append(config.max_steps) or 0)
    monkeypatch.setenv("RANK", rank)
    said = trainer("train", "shakespeare", "max_tokens=1e6")
    assert (said.code, trained) == (0, [489])
    assert ("489" in said.err and "max_tokens" in said.err) is says
    assert "max_steps" not in trainer("train", "shakespeare", "max_steps=50").err


def test_without_the_size_of_the_data_epochs_are_refused(recipe):
    with pytest.raises(ConfigError) as caught:
        load(recipe("max_epochs: 1"))
    says(caught.value.problems[0], "max_epochs")


def test_what_is_due_at_multiples_and_never_at_zero():
    assert [step for step in range(1, 11) if is_due(step, 5)] == [5, 10]
    assert not any(is_due(step, 0) for step in range(1, 11))
