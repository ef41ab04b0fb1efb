"""What this room believes of TransformerEngine, held against the real one where it is installed (no GPU is needed for that)."""

import dataclasses
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import pytest
import torch  # noqa: F401  before transformer_engine, whose library finds CUDA's through it

from tests import emulation
from trainer.precision import backend
from trainer.precision.recipes import RECIPES


def is_installed() -> bool:
    try:
        return find_spec("transformer_engine") is not None and version("transformer_engine_torch") is not None
    except PackageNotFoundError:
        return False


@pytest.fixture(params=["real", "stand-in"])
def loaded(request):
    if request.param == "real" and not is_installed():
        pytest.skip("TransformerEngine is not installed here")
    if request.param == "stand-in":
        emulation.install()
    yield backend.load()
    emulation.uninstall()


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_every_recipe_has_its_class_its_options_its_formats_and_its_predicate(loaded, recipe):
    fields = {field.name for field in dataclasses.fields(getattr(loaded.recipes, recipe.te_class))}
    assert recipe.options <= fields and callable(getattr(loaded.pytorch, recipe.predicate))
    for form in recipe.formats:
        made = backend.make_recipe(recipe, form, {})
        assert made.fp8_format.name == form.upper() and made.delayed() == (not recipe.stateless)
        assert made.nvfp4() == (recipe.name == "nvfp4")


def test_every_name_of_it_that_is_used_is_there(loaded):
    assert callable(loaded.pytorch.autocast) and callable(loaded.pytorch.fp8_autocast)
    assert {"forward", "_get_weight_tensors", "get_extra_state"} <= set(dir(loaded.pytorch.Linear))
