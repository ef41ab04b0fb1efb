import pytest
from pydantic import ValidationError

from tests.messages import names, refuses
from trainer.config.load import load
from trainer.config.schema import Config
from trainer.errors import ConfigError

CONTRADICTIONS = [
    (["global_batch=10", "micro_batch=4"], ["global_batch", 10, "micro_batch", 4, "8, 12"]),
    (["global_batch=3", "micro_batch=4"], ["nearest: 4"]),
    (["schedule.warmup_steps=31", "max_steps=30"], ["schedule.warmup_steps", 31, "max_steps", 30]),
    (["profile.steps=[105,100]"], ["profile.steps", "[105, 100]"]),
    (["profile.steps=[500,505]"], ["profile.steps", "[500, 505]", "max_steps", 420]),
    (["data.corpus="], ["data.corpus", "data.train"]),
    (["data.train=[a.bin]"], ["data.corpus", "data.train"]),
    (["data.corpus=", "data.train=[a.bin]"], ["data.train", "data.tokenizer"]),
    (["model.preset="], ["model.preset"]),
    (
        ["evaluation.tasks_every_steps=150"],
        ["evaluation.tasks_every_steps", 150, "evaluation.every_steps", 140],
    ),
    (["data.corpus=", "data.train=[a.bin]", "data.tokenizer=gpt2"], ["evaluation.tasks", "data.validation"]),
    (
        ["data.corpus=", "data.train=[a.bin]", "data.validation=[b.bin]", "data.vocab_size=9"],
        ["evaluation.tasks", "data.validation"],
    ),
    (
        ["precision.recipe=delayed", "model.gradient_checkpointing=true"],
        ["precision.recipe", "delayed", "model.gradient_checkpointing"],
    ),
    (
        ["precision.recipe=nvfp4", "precision.format=hybrid"],
        ["precision.format", "hybrid", "precision.recipe", "nvfp4"],
    ),
    (["name=.hidden"], ["name", "'.hidden'"]),
    (["name=a/b"], ["name", "'a/b'"]),
]


@pytest.mark.parametrize(("overrides", "words"), CONTRADICTIONS, ids=[" ".join(case[0]) for case in CONTRADICTIONS])
def test_settings_that_do_not_fit_together_are_refused(overrides, words):
    with pytest.raises(ConfigError) as caught:
        load("shakespeare", overrides)
    assert [problem for problem in caught.value.problems if names(problem, *words)]


def test_every_contradiction_is_told():
    with pytest.raises(ConfigError) as caught:
        load("shakespeare", ["global_batch=10", "micro_batch=4", "model.preset=", "name=.hidden"])
    assert len(caught.value.problems) == 3


def mistaken(override):
    """The key of an override and the first value behind it, as a message names them."""
    key, _, value = override.partition("=")
    return key, value.strip("[.]").split(",")[0]


@pytest.mark.parametrize(
    "override",
    [
        "max_steps=0",
        "micro_batch=-1",
        "optimizer.lr=0",
        "optimizer.betas=[0.9]",
        "optimizer.betas=[0.9,0.9,0.9]",
        "schedule.min_lr_fraction=1.5",
        "optimizer.name=sgd",
        "max_steps=1.5",
        "optimizer.lr=.nan",
        "profile.steps=[0,5]",
        "profile.steps=[5]",
        "profile.steps=5",
        "metrics.detail_every_steps=-1",
        "metrics.histogram_every_steps=x",
        "data=shakespeare",
    ],
)
def test_a_value_out_of_its_range_is_refused(override):
    with refuses(ConfigError, *mistaken(override)):
        load("shakespeare", [override])


def test_a_config_cannot_be_changed():
    config = load("shakespeare").config
    with pytest.raises(ValidationError):
        config.seed = 3
    with pytest.raises(ValidationError):
        config.optimizer.lr = 3.0


def test_a_model_without_a_preset_is_one_of_transformers():
    assert load("shakespeare", ["model.preset=", "model.config.model_type=gpt2"]).config.model.config == {
        "model_type": "gpt2"
    }


def test_the_promised_keys_exist_under_their_names():
    promised = "name seed max_steps global_batch micro_batch sequence_length resume_from_checkpoint deterministic checkpoint evaluation"
    assert set(promised.split()) <= Config.model_fields.keys()
    assert Config.model_fields["deterministic"].default is True
    assert {"every_steps", "keep_last"} <= Config.model_fields["checkpoint"].annotation.model_fields.keys()


def test_a_format_of_fp8_that_nothing_trains_in_is_refused_by_name():
    with refuses(ConfigError, "precision.format", "e5m2"):
        load("shakespeare", ["precision.format=e5m2"])
