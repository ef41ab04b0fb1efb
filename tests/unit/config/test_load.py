import pickle

import pytest
import yaml

from tests.messages import says
from trainer.config.load import dump, find_recipe, flatten, kept_settings, load, load_resolved, recipe_names
from trainer.config.settings import settings_help
from trainer.errors import ConfigError

WHOLE = """\
max_steps: 100
global_batch: 8
micro_batch: 4
sequence_length: 16
data:
  corpus: shakespeare
model:
  preset: llama-shakespeare
"""


@pytest.fixture
def recipe(tmp_path):
    """Writes recipes by name and gives the path of the last."""

    def write(content, name="mine"):
        path = tmp_path / f"{name}.yaml"
        path.write_text(content, encoding="utf-8")
        return str(path)

    return write


def problems_of(*arguments):
    with pytest.raises(ConfigError) as caught:
        load(*arguments)
    return caught.value.problems


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_loads_and_bears_its_name(name):
    assert load(name).config.name == name


def test_a_recipe_is_found_by_name_by_path_and_beside_the_file_that_names_it(recipe, tmp_path):
    path = recipe(WHOLE)
    assert find_recipe("shakespeare").name == "shakespeare.yaml"
    assert find_recipe(path) == tmp_path / "mine.yaml"
    assert find_recipe("mine.yaml", beside=tmp_path) == tmp_path / "mine.yaml"


def test_an_unknown_recipe_is_answered_with_the_nearest():
    (problem,) = problems_of("shakespear")
    says(problem, "'shakespear'", "'shakespeare'")


def test_a_recipe_file_that_is_not_there_is_answered_with_the_shipped_ones(tmp_path):
    (problem,) = problems_of(str(tmp_path / "none.yaml"))
    says(problem, "none.yaml")
    assert "shakespeare" in problem


def test_every_value_knows_where_it_came_from(recipe):
    recipe(WHOLE, "ground")
    loaded = load(
        recipe("base: ground.yaml\nseed: 7\noptimizer:\n  lr: 0.5\n", "top"), ["optimizer.lr=0.25", "max_steps=7"]
    )
    assert loaded.config.optimizer.lr == 0.25
    assert loaded.config.max_steps == 7
    assert loaded.origins["optimizer.lr"] == "override"
    assert loaded.origins["seed"] == "top.yaml:2"
    assert loaded.origins["global_batch"] == "ground.yaml:2"
    assert loaded.origins["data.corpus"] == "ground.yaml:6"
    assert loaded.origins["optimizer.eps"] == "default"
    assert loaded.origins["name"] == "the recipe's name"
    assert loaded.origins.keys() == flatten(loaded.config).keys()


def test_a_setting_that_is_a_mapping_has_the_origins_of_its_parts(recipe):
    path = recipe(WHOLE + "  config:\n    hidden_size: 64\n")
    assert load(path).origins["model.config"] == "mine.yaml:10"
    assert load(path, ["model.config.num_hidden_layers=2"]).origins["model.config"] == "mine.yaml:10, override"
    assert load("shakespeare", ["model.config.hidden_size=64"]).origins["model.config"] == "override"


def test_a_recipe_stands_over_its_base_key_by_key(recipe):
    recipe(WHOLE + "optimizer: {lr: 0.1, eps: 0.5}\n", "ground")
    recipe("base: ground.yaml\noptimizer: {lr: 0.2}\n", "middle")
    config = load(recipe("base: middle.yaml\noptimizer: {weight_decay: 0.3}\n", "top")).config
    assert (config.optimizer.lr, config.optimizer.eps, config.optimizer.weight_decay) == (0.2, 0.5, 0.3)
    assert config.name == "top"


def test_a_recipe_may_stand_on_a_shipped_one(recipe):
    assert load(recipe("base: shakespeare\nmax_steps: 30\n")).config.data.corpus == "shakespeare"


def test_a_recipe_that_is_its_own_base_is_refused(recipe):
    recipe("base: b.yaml\n", "a")
    (problem,) = problems_of(recipe("base: a.yaml\n", "b"))
    assert "b.yaml -> a.yaml -> b.yaml" in problem


def test_all_mistakes_are_told_at_once(recipe):
    path = recipe(WHOLE.replace("max_steps: 100\n", "") + "optimizer:\n  lrr: 1\n  eps: -1\n")
    problems = problems_of(path, ["seed=minus", "nonsense"])
    text = "\n".join(problems)
    assert len(problems) == 5
    says(
        text,
        "'nonsense'",
        "key=value",
        "max_steps",
        "optimizer.lrr",
        "mine.yaml:9",
        "optimizer.lr",
        "optimizer.eps",
        "mine.yaml:10",
        "-1",
        "seed",
        "'minus'",
        "integer",
    )


@pytest.mark.parametrize(
    ("key", "help_text"),
    [
        ("optimiser.lr", "optimizer"),
        ("max_step", "max_steps"),
        ("warmup_steps", "schedule.warmup_steps"),
        ("model.lr", "optimizer.lr"),
        ("qqqq", "name, seed"),
        ("safety.qqqq", "max_bad_steps"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest(key, help_text):
    (problem,) = problems_of("shakespeare", [f"{key}=1"])
    assert problem.startswith("unknown key ")
    says(problem, help_text)


def test_a_setting_has_no_settings_inside():
    (problem,) = problems_of("shakespeare", ["max_steps.inner=1"])
    says(problem, "'max_steps.inner=1'", "max_steps", "inner")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a: [1\n", ["YAML", "line 2"]),
        ("- 1\n- 2\n", ["settings"]),
        ("", ["settings"]),
        ("seed: 1\nmax_steps: 2\nseed: 3\n", ["mine.yaml:3", "seed"]),
        ("optimizer:\n  lr: 1\n  lr: 2\n", ["mine.yaml:3", "optimizer.lr"]),
        ("seed: !mine 3\n", ["YAML", "line 1"]),
        ("name: 2026-13-45\n", ["YAML"]),
    ],
)
def test_a_recipe_that_is_not_one_is_refused_in_a_sentence(recipe, content, words):
    (problem,) = problems_of(recipe(content))
    says(problem, *words)


def test_a_recipe_of_other_bytes_than_text_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "mine.yaml").write_bytes(b"seed: \xff\xfe\n")
    (problem,) = problems_of(str(tmp_path / "mine.yaml"))
    assert "not readable YAML" in problem


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("name=2026-01-01", "2026-01-01"),
        ("name=2026-13-45", "2026-13-45"),
        ("name=on", "on"),
        ("name=0123", "0123"),
        ("name=1e5", "1e5"),
        ("resume_from_checkpoint=00001500", "00001500"),
        ("resume_from_checkpoint=none", "none"),
        ("data.tokenizer=null", None),
        ("data.tokenizer=", None),
        ("optimizer.lr=6e-4", 6e-4),
        ("deterministic=false", False),
        ("metrics.trackers=[]", []),
        ("optimizer.betas=[0.8, 0.9]", [0.8, 0.9]),
        ("optimizer.lr=2026-13-45", None),
    ],
)
def test_an_override_means_what_it_says(override, value):
    key = override.partition("=")[0]
    if override == "optimizer.lr=2026-13-45":
        says(problems_of("shakespeare", [override])[0], key, "number")
    else:
        assert flatten(load("shakespeare", [override]).config)[key] == value


@pytest.mark.parametrize("key", [key for key, _, _ in settings_help()])
def test_every_setting_can_be_overridden(key):
    config = load("shakespeare").config
    text = yaml.safe_dump(flatten(config)[key], default_flow_style=True).removesuffix("\n").removesuffix("\n...")
    again = load("shakespeare", [f"{key}={'' if text == 'null' else text.strip(chr(39))}"])
    assert again.config == config
    assert again.origins[key] == "override"


def test_every_setting_has_words_of_help():
    assert [key for key, _, words in settings_help() if len(words) < 10] == []


def test_a_resolved_config_reads_back_as_itself(tmp_path):
    config = load("shakespeare", ["optimizer.betas=[0.5,0.25]", "model.config.hidden_size=8"]).config
    (tmp_path / "config.yaml").write_text(dump(config), encoding="utf-8")
    assert load_resolved(tmp_path / "config.yaml") == config


def test_a_kept_config_of_another_version_has_todays_defaults_and_keeps_what_is_no_setting_any_more(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        "max_steps: 3\ngone: {x: 1}\noptimizer: {lr: 1e-3, betas: [0.8, 0.9]}\nmodel: {config: {n_layer: 2}}\n"
    )
    kept = kept_settings(path)
    assert kept["max_steps"] == 3
    assert kept["gone"] == {"x": 1}
    assert kept["optimizer.lr"] == 1e-3
    assert kept["optimizer.betas"] == [0.8, 0.9]
    assert kept["model.config"] == {"n_layer": 2}
    assert kept["optimizer.eps"] == 1e-8
    assert "global_batch" not in kept
    config = load("shakespeare").config
    path.write_text(dump(config))
    assert kept_settings(path) == flatten(config)


def test_a_config_goes_to_another_process_as_it_is():
    config = load("shakespeare").config
    assert pickle.loads(pickle.dumps(config)) == config
