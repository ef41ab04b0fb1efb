"""Part `probe`: what the machine is, and what is decided for each recipe, with the errors of the layer that is computed both ways."""

import functools
from typing import Any

from tests.gpu.record import Record
from tests.gpu.runs import Scene
from trainer.config.schema import PrecisionConfig
from trainer.precision.decide import decide
from trainer.precision.probe import probe_device
from trainer.precision.recipes import RECIPES, Recipe

LEAST_RECIPES = 3
"""Of a Hopper GPU."""


def measure(scene: Scene, record: Record) -> None:
    """Asks for every recipe there is; those that the GPU has must be decided for."""
    on_this_gpu = scene.recipes()
    for recipe in RECIPES.values():
        found = record.piece(recipe.name, functools.partial(_decide, scene, recipe))
        if found and recipe in on_this_gpu:
            record.check(f"{recipe.name} is decided for", found["sentence"], "fp8", held=found["mode"] == "fp8")
    record.check(
        "recipes that this GPU has",
        len(on_this_gpu),
        f"at least {LEAST_RECIPES}",
        held=len(on_this_gpu) >= LEAST_RECIPES,
    )


def _decide(scene: Scene, recipe: Recipe) -> dict[str, Any]:
    wanted = PrecisionConfig(recipe=recipe.name)
    facts = probe_device(scene.device_type, wanted)
    decision = decide("fp8", facts, wanted)
    return {
        "mode": decision.mode,
        "label": decision.label,
        "sentence": decision.sentence,
        "backend": facts.backend,
        "probe_error": facts.probe_error,
    }
