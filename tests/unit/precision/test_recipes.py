import pytest

from trainer.precision.recipes import RECIPES, recipe_of, uncompiled_because


@pytest.mark.parametrize(
    ("capability", "name"),
    [
        (None, "current"),
        ((8, 9), "current"),
        ((9, 0), "current"),
        ((10, 0), "mxfp8"),
        ((10, 3), "mxfp8"),
        ((12, 0), "current"),
    ],
)
def test_auto_is_mxfp8_on_data_centre_blackwell_and_current_scaling_elsewhere(capability, name):
    assert recipe_of("auto", capability).name == name


def test_a_named_recipe_is_taken_whatever_the_gpu():
    assert [recipe_of(name, (9, 0)).name for name in RECIPES] == list(RECIPES)


def test_only_delayed_scaling_has_a_state():
    assert [name for name, recipe in RECIPES.items() if not recipe.stateless] == ["delayed"]


@pytest.mark.parametrize(
    ("name", "version", "words"),
    [("current", (2, 13), "from torch 2.14"), ("delayed", (2, 14), "refuses to be compiled")],
)
def test_fp8_that_cannot_be_compiled_says_why(name, version, words):
    assert words in uncompiled_because(RECIPES[name], version)


def test_stateless_recipes_compile_with_a_newer_torch():
    assert all(uncompiled_because(recipe, (2, 14)) is None for recipe in RECIPES.values() if recipe.stateless)
