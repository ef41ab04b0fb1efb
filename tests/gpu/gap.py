"""Part `gap`: the same 300 steps in bf16 and in each recipe, over three seeds: how far the loss in fp8 is from bf16's.

Beside it the gap between two runs in bf16 that differ in nothing but the order of summation (half the micro-batch): two runs that round
differently drift apart whatever their precision is, and a gap of that size says nothing about fp8.
"""

import functools
import statistics
from typing import Any

from tests.gpu.record import Record
from tests.gpu.runs import Scene, cleared, model_of, recipe_of, train
from tests.launching import records, steps

BAR = 0.005
NOISE = "bf16, half the micro-batch"


def measure(scene: Scene, record: Record) -> None:
    """Runs bf16, its twin and the recipes with each seed; the largest gap of any seed is held against the bar."""
    seeds = scene.sized((1, 2, 3), (1,))
    ways = ["bf16", *(recipe.name for recipe in scene.recipes()), *scene.sized([NOISE], [])]
    works = {f"{way}, seed {seed}": functools.partial(_run, scene, way, seed) for seed in seeds for way in ways}
    found = record.side_by_side(works, scene.at_once)
    for way in ways[1:]:
        for loss in ("training", "validation"):
            gaps = [_gap(found[f"{way}, seed {seed}"], found[f"bf16, seed {seed}"], loss) for seed in seeds]
            if None in gaps:
                continue
            name = (
                f"{way}: {loss} loss against bf16 by seed ({', '.join(f'{gap:+.3%}' for gap in gaps)}), the largest gap"
            )
            largest = max(gaps, key=abs)
            bar, held = (
                (f"within {BAR:.1%}", abs(largest) < BAR)
                if way != NOISE
                else ("no bar: what rounding alone does", True)
            )
            record.check(name, largest, bar, held=held)


def _gap(ours: dict[str, Any] | None, reference: dict[str, Any] | None, loss: str) -> float | None:
    """Relative, positive where bf16 is better; None where one of the two was not measured."""
    return None if ours is None or reference is None else ours[loss] / reference[loss] - 1.0


def _run(scene: Scene, way: str, seed: int) -> dict[str, Any]:
    max_steps, last = scene.sized((300, 50), (10, 4))
    precision = "bf16" if way in ("bf16", NOISE) else "fp8"
    changes: dict[str, Any] = {} if precision == "bf16" else {"precision": {"recipe": way, "required": True}}
    if way == NOISE:
        changes["micro_batch"] = scene.sized(4, 1)
    path = recipe_of(scene, f"gap {way} {seed}", model_of(scene, "llama", 768, 12), max_steps, seed=seed, **changes)
    train(scene, path, precision=precision)
    losses = [record["loss"] for record in steps(path)]
    (validation,) = [record["val_loss"] for record in records(path) if "val_loss" in record]
    return cleared(path, {"training": statistics.mean(losses[-last:]), "validation": validation, "first": losses[0]})
