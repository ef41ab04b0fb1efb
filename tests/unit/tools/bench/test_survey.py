"""What a measurement asks of the machine before it launches anything."""

import pytest

from tests import emulation
from tests.messages import refuses, says
from trainer.config.cluster import read_cluster
from trainer.config.load import load
from trainer.errors import LaunchError
from trainer.precision.decide import NO_DEVICE
from trainer.precision.recipes import RECIPES
from trainer.tools.bench import survey as survey_module
from trainer.tools.bench.survey import survey


@pytest.fixture
def stand_in():
    emulation.install()
    yield
    emulation.uninstall()


def looked(*overrides, num_processes=1):
    return survey_module.look(
        load("shakespeare", ["precision.bf16_first_blocks=0", "precision.bf16_last_blocks=0", *overrides]).config,
        True,
        num_processes,
    )


def test_without_a_gpu_bf16_is_there_and_no_fp8_with_the_decisions_own_words():
    seen = looked(num_processes=2)
    assert list(seen.decisions) == ["bf16", *RECIPES]
    assert seen.decisions["bf16"].mode == "bf16"
    assert all(seen.decisions[name].mode == "bf16" for name in RECIPES)
    assert {seen.decisions[name].reason for name in RECIPES} == {NO_DEVICE}
    assert seen.conditions["processes"] == 2
    assert seen.conditions["device"] == "cpu"


def test_with_the_stand_in_each_recipe_that_fits_the_shapes_is_an_emulation(stand_in):
    seen = looked()
    assert {name: seen.decisions[name].label for name in ("current", "delayed")} == dict.fromkeys(
        ("current", "delayed"), "fp8 emulation"
    )
    assert looked("micro_batch=1", "sequence_length=24").decisions["current"].mode == "bf16"


def test_a_recipe_that_lacks_a_format_or_an_option_is_missing_in_the_words_of_the_refusal(stand_in):
    seen = looked("precision.options={amax_history_len: 16}", "precision.required=true")
    assert seen.decisions["delayed"].mode == "fp8"
    says(seen.decisions["current"].reason, "precision.options.amax_history_len")
    says(
        looked("precision.format=hybrid").decisions["nvfp4"].reason,
        "precision.format",
        "'hybrid'",
        "precision.recipe",
        "'nvfp4'",
    )


def test_a_recipe_that_a_setting_of_the_run_excludes_is_missing_in_the_words_of_the_mistake_instead_of_ending_the_measurement(
    stand_in,
):
    seen = looked("model.gradient_checkpointing=true")
    assert {name: decision.mode for name, decision in seen.decisions.items()}["current"] == "fp8"
    assert seen.decisions["delayed"].mode == "bf16"
    says(seen.decisions["delayed"].reason, "model.gradient_checkpointing")


def test_a_look_that_ends_its_process_is_told(monkeypatch):
    monkeypatch.setattr(survey_module, "look", die)
    with refuses(LaunchError, "transformer_engine.pytorch"):
        survey(load("shakespeare").config, read_cluster("cpu"))


def die(*_):
    import os

    os._exit(1)
