"""Words that YAML takes for other values: refused with both readings where a number or a text is wanted, and nowhere else."""

import math

import pytest
import yaml

from tests.messages import says
from trainer.config.cluster import read_cluster
from trainer.config.load import dump, flatten, load, load_resolved
from trainer.config.settings import kind_of
from trainer.errors import ConfigError


def of_recipe(tmp_path, lines, overrides=()):
    (tmp_path / "mine.yaml").write_text(f"base: shakespeare\n{lines}\n", encoding="utf-8")
    return load(str(tmp_path / "mine.yaml"), overrides)


def problems_of(tmp_path, lines, overrides=()):
    with pytest.raises(ConfigError) as caught:
        of_recipe(tmp_path, lines, overrides)
    return caught.value.problems


NUMBERS = [
    ("optimizer: {lr: true}", "optimizer.lr", "true", "1 as a number"),
    ("max_steps: yes", "max_steps", "yes", "true"),
    ("max_steps: off", "max_steps", "off", "false"),
    ("max_steps: 0100", "max_steps", "64", "100"),
    ("global_batch: +010", "global_batch", "8", "10"),
    ("checkpoint: {every_minutes: 1:30}", "checkpoint.every_minutes", "90", "1:30"),
    ("checkpoint: {max_lost_work_seconds: 1:30.5}", "checkpoint.max_lost_work_seconds", "90.5", "1:30.5"),
    ("optimizer: {betas: [yes, 0.9]}", "optimizer.betas", "yes", "true"),
    ("profile: {steps: [010, 020]}", "profile.steps", "8", "10"),
    ("checkpoint: {every_tokens: 2026-01-01}", "checkpoint.every_tokens", "2026-01-01", "date"),
    ("model: {config: {hidden_size: 0100}}", "model.config.hidden_size", "64", "100"),
]
TEXTS = [
    ("name: 1e3", "name", "1000.0", "'1e3'"),
    ("name: 0100", "name", "64", "'0100'"),
    ("name: yes", "name", "true", "'yes'"),
    ("name: 1:30", "name", "90", "'1:30'"),
    ("name: 1_000", "name", "1000", "'1_000'"),
    ("name: 2026-01-01", "name", "date", "'2026-01-01'"),
    ("resume_from_checkpoint: 00001500", "resume_from_checkpoint", "832", "'00001500'"),
    ("data: {train: [1e3], corpus: , tokenizer: gpt2}", "data.train", "1000.0", "'1e3'"),
    ("evaluation: {sample_prompts: [on]}", "evaluation.sample_prompts", "true", "'on'"),
    ("schedule: {name: no}", "schedule.name", "false", "'no'"),
    ("base: 0100", "base", "64", "'0100'"),
]


@pytest.mark.parametrize(
    ("lines", "key", "first", "second"), NUMBERS + TEXTS, ids=[case[0] for case in NUMBERS + TEXTS]
)
def test_a_word_with_two_readings_is_refused_with_both(tmp_path, lines, key, first, second):
    if lines.startswith("base"):
        (tmp_path / "mine.yaml").write_text(lines)
        with pytest.raises(ConfigError) as caught:
            load(str(tmp_path / "mine.yaml"))
        (problem,) = caught.value.problems
    else:
        (problem,) = problems_of(tmp_path, lines)
    assert problem.startswith(f"{key} (mine.yaml:")
    assert first in problem
    assert second in problem


@pytest.mark.parametrize(
    "override",
    [
        "optimizer.lr=true",
        "max_steps=0100",
        "max_tokens=0100",
        "checkpoint.every_minutes=1:30",
        "metrics.trackers=[on]",
    ],
)
def test_a_typed_number_with_two_readings_is_refused_too(tmp_path, override):
    (problem,) = problems_of(tmp_path, "", [override])
    assert problem.startswith(f"{override.partition('=')[0]} (override) is ")


@pytest.mark.parametrize(
    ("lines", "key", "value"),
    [
        ("optimizer: {lr: 6e-4}", "optimizer.lr", 6e-4),
        ("max_steps: 1e3", "max_steps", 1000),
        ("checkpoint: {every_tokens: 1e9}", "checkpoint.every_tokens", 10**9),
        ("max_steps: 1_000", "max_steps", 1000),
        ("max_steps: 0x100", "max_steps", 256),
        ("schedule: {warmup_steps: 00}", "schedule.warmup_steps", 0),
        ("checkpoint: {max_lost_work_seconds: .inf}", "checkpoint.max_lost_work_seconds", math.inf),
        ("optimizer: {max_grad_norm: .inf}", "optimizer.max_grad_norm", math.inf),
        ("deterministic: no", "deterministic", False),
        ("deterministic: on", "deterministic", True),
        ("name: '0100'", "name", "0100"),
        ('name: "1e3"', "name", "1e3"),
        ("resume_from_checkpoint: 1500", "resume_from_checkpoint", "1500"),
        ("name: 1.5", "name", "1.5"),
        ("evaluation: {prompt: 'yes'}", "evaluation.prompt", "yes"),
        ("data: {tokenizer: ~}", "data.tokenizer", None),
        ("checkpoint: {every_minutes: 1.5}", "checkpoint.every_minutes", 1.5),
        (
            "model: {config: {tie_word_embeddings: yes, rope_theta: 1e4}}",
            "model.config",
            {"tie_word_embeddings": True, "rope_theta": 1e4},
        ),
        ("metrics: {tracker_options: {on: {no: 1}}}", "metrics.tracker_options", {"on": {"no": 1}}),
    ],
)
def test_a_word_with_one_reading_means_it(tmp_path, lines, key, value):
    assert flatten(of_recipe(tmp_path, lines).config)[key] == value


def test_a_word_that_a_stronger_place_replaces_is_of_no_account(tmp_path):
    assert of_recipe(tmp_path, "max_steps: 0100", ["max_steps=30"]).config.max_steps == 30
    (tmp_path / "ground.yaml").write_text("base: shakespeare\noptimizer: {lr: yes}\n")
    (tmp_path / "top.yaml").write_text("base: ground.yaml\noptimizer: {lr: 0.5}\n")
    assert load(str(tmp_path / "top.yaml")).config.optimizer.lr == 0.5


def test_all_of_them_are_told_at_once_beside_other_mistakes(tmp_path):
    problems = problems_of(tmp_path, "max_steps: 0100\nname: yes\nseed: minus")
    assert [problem.split()[0] for problem in problems] == ["max_steps", "name", "seed"]


def test_an_alias_to_what_holds_it_is_refused_in_a_sentence(tmp_path):
    (problem,) = problems_of(tmp_path, "model: &a {config: *a}")
    assert "not readable YAML" in problem


def test_a_file_that_may_not_be_read_is_refused_in_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text("seed: 1\n")

    def denied(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.read_text", denied)
    for read in (load, read_cluster):
        with pytest.raises(ConfigError) as caught:
            read(str(tmp_path / "mine.yaml"))
        says(caught.value, "Permission denied", tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("max_steps", "number"),
        ("data.vocab_size", "number"),
        ("optimizer.betas", "number"),
        ("profile.steps", "number"),
        ("name", "text"),
        ("data.train", "text"),
        ("data.dtype", "text"),
        ("schedule.name", "text"),
        ("deterministic", "any"),
        ("model.config", "any"),
        ("model.config.hidden_size", "any"),
        ("no_such.key", "any"),
    ],
)
def test_what_a_setting_takes_is_in_the_schema(key, kind):
    assert kind_of(key) == kind


@pytest.mark.parametrize(
    "override",
    [
        "optimizer.lr=.inf",
        "optimizer.lr=inf",
        "optimizer.muon_lr=.inf",
        "optimizer.eps=.inf",
        "optimizer.weight_decay=.inf",
        "optimizer.muon_weight_decay=.inf",
        "optimizer.betas=[0.9, 1]",
        "optimizer.betas=[1.0, 0.9]",
        "optimizer.muon_momentum=1",
    ],
)
def test_a_rate_or_decay_without_an_end_and_a_beta_of_1_are_refused(override):
    with pytest.raises(ConfigError) as caught:
        load("shakespeare", [override])
    (problem,) = caught.value.problems
    assert problem.startswith(override.partition("=")[0])


def test_a_config_that_an_earlier_version_wrote_is_read(tmp_path):
    config = load(
        "shakespeare",
        ["name=1e3", "checkpoint.max_lost_work_seconds=.inf", "resume_from_checkpoint=0100", "evaluation.prompt=yes"],
    ).config
    content = {
        key: value for key, value in yaml.safe_load(dump(config)).items() if key not in ("max_tokens", "max_epochs")
    }
    text = dump(config)
    for key in ("max_tokens", "max_epochs"):
        text = text.replace(f"{key}: null\n", "")
    assert content["name"] == "1e3"
    assert "max_tokens" not in text
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    assert load_resolved(tmp_path / "config.yaml") == config
