"""The door to TransformerEngine: nothing else imports it, and only where fp8 was asked for.

torch is imported first, since TransformerEngine's library finds CUDA's through it. A module that calls itself an emulation (the tests'
stand-in) is taken for what it is: its words become the decision's, and its arithmetic is never called fp8.
"""

import dataclasses
import functools
import importlib
from collections.abc import Mapping
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch  # noqa: F401  before transformer_engine

from trainer.errors import PrecisionError
from trainer.precision.recipes import Recipe
from trainer.text import one_line


@dataclasses.dataclass(frozen=True)
class Backend:
    """TransformerEngine, imported."""

    pytorch: ModuleType
    recipes: ModuleType
    name: str
    """What a record calls it, with its version."""
    emulated: bool


@functools.cache
def load() -> Backend:
    """Imports TransformerEngine; raises whatever that raises: a broken installation has many ways."""
    names = ("transformer_engine", "transformer_engine.pytorch", "transformer_engine.common.recipe")
    package, pytorch, recipes = (importlib.import_module(name) for name in names)
    emulation = getattr(package, "EMULATION", None)
    version = getattr(package, "__version__", "of unknown version")
    return Backend(pytorch, recipes, emulation or f"TransformerEngine {version}", emulation is not None)


def is_missing(error: BaseException) -> bool:
    """Whether an import of TransformerEngine failed because it is not there at all, and not because something in it is broken."""
    return isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] == "transformer_engine"


def is_emulated() -> bool:
    """Whether what is installed under TransformerEngine's name is an emulation; never imports the real one's heavy part."""
    if find_spec("transformer_engine") is None:
        return False
    try:
        return getattr(importlib.import_module("transformer_engine"), "EMULATION", None) is not None
    except Exception:  # a broken installation is no emulation, and `load` will say how it is broken
        return False


def make_recipe(recipe: Recipe, form: str, options: Mapping[str, Any]) -> Any:
    """TransformerEngine's recipe object.

    raises   PrecisionError for an option that its class would drop without a word, or refuses
    """
    backend = load()
    made = getattr(backend.recipes, recipe.te_class)
    fields = {field.name for field in dataclasses.fields(made)}
    if dropped := options.keys() - fields:
        raise PrecisionError(
            f"precision.options.{min(dropped)} is not an option of {recipe.te_class} in {backend.name}, which would drop it without a word; "
            f"it has {', '.join(sorted(recipe.options & fields)) or 'none that changes a linear layer'}"
        )
    try:
        return made(fp8_format=backend.recipes.Format[form.upper()], **options)
    except Exception as error:  # pydantic's refusals and plain assertions, in TransformerEngine's words
        raise PrecisionError(
            f"precision.options {dict(options)} with precision.format {form!r} is refused by {recipe.te_class} of {backend.name} "
            f"({one_line(error)}); fix the option"
        ) from None
