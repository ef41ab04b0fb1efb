"""Part `resume`: runs in fp8 that are killed with SIGKILL and resumed, beside the same runs straight through; and what `deterministic` costs.

Bit-identical are weights, moments and every loss, with what `deterministic: true` sets for it (trainer/launch.py): one cuBLAS workspace, no
non-deterministic kernels of TransformerEngine's, torch's deterministic algorithms (attention backward), one NCCL algorithm.
"""

import functools
from pathlib import Path
from typing import Any

from tests.gpu.record import Record
from tests.gpu.runs import FAMILIES, Scene, cleared, killed_and_resumed, model_of, recipe_of, step_seconds, train


def measure(scene: Scene, record: Record) -> None:
    """Kills a run of each stateless recipe with each family; then, with nothing beside it, times steps with and without `deterministic`."""
    names = [recipe.name for recipe in scene.recipes() if recipe.stateless]
    works = {
        f"{name} {family}": functools.partial(_kill, scene, name, family)
        for name in names
        for family in scene.sized(FAMILIES, FAMILIES[:1])
    }
    for case, found in record.side_by_side(works, max(1, scene.at_once // 2)).items():
        if found:
            wrong = [what for what, held in found["holds"].items() if not held]
            value = "bit-identical" if not wrong else f"not so: {', '.join(wrong)}"
            record.check(
                f"{case}: killed after step {found['killed_after']} and resumed", value, "bit-identical", held=not wrong
            )
    for name in names:
        times = [
            record.piece(f"{name}, deterministic {on}", functools.partial(_time, scene, name, deterministic=on))
            for on in (True, False)
        ]
        if all(times):
            ratio = times[0]["step_seconds"] / times[1]["step_seconds"]
            record.check(
                f"{name}: time of a step with deterministic: true over one without",
                ratio,
                "no bar: the price",
                held=True,
            )


def _recipe(scene: Scene, which: str, name: str, family: str, max_steps: int, **changes: Any) -> Path:
    """With dropout, so that the random state matters, and two micro-batches a step, so that fp8 weights are kept."""
    model, batch = model_of(scene, family, 768, 6, dropout=0.1), scene.sized({"global_batch": 16}, {})
    precision = {"recipe": name, "required": True}
    return recipe_of(
        scene,
        f"resume {name} {family} {which}",
        model,
        max_steps,
        precision=precision,
        **{"deterministic": True, **batch, **changes},
    )


def _kill(scene: Scene, name: str, family: str) -> dict[str, Any]:
    max_steps, every = scene.sized((240, 20), (16, 5))
    pair = [
        _recipe(scene, which, name, family, max_steps, checkpoint={"every_steps": every})
        for which in ("straight", "killed")
    ]
    return killed_and_resumed(scene, *pair, max_steps, every, precision="fp8")


def _time(scene: Scene, name: str, *, deterministic: bool) -> dict[str, Any]:
    path = _recipe(
        scene, f"deterministic {deterministic}", name, "gpt2", scene.sized(60, 4), deterministic=deterministic
    )
    said = train(scene, path, precision="fp8")
    told = [line for line in said.splitlines() if "deterministic: on" in line]
    return cleared(path, {"step_seconds": step_seconds(path), "told": told})
