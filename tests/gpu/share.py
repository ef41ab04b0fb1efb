"""Part `share`: how much of the arithmetic is in fp8 in a run of each recipe, seen from outside while it runs, for both families of models."""

import functools
import gzip
import json
from pathlib import Path
from typing import Any

from tests.gpu.record import Record
from tests.gpu.runs import FAMILIES, Scene, cleared, model_of, recipe_of, train
from tests.launching import checkpoint
from trainer.precision.recipes import Recipe

BAR = 0.99
MAX_STEPS = 6


def measure(scene: Scene, record: Record) -> None:
    """Runs each recipe on GPT-2 and on Llama; the share is that of the linear layers in the blocks chosen for fp8."""
    cases = [(recipe, family) for recipe in scene.recipes() for family in scene.sized(FAMILIES, FAMILIES[1:])]
    works = {f"{recipe.name} {family}": functools.partial(_run, scene, recipe, family) for recipe, family in cases}
    for name, found in record.side_by_side(works, scene.at_once).items():
        if found:
            share, seen, audited = found["of_chosen_blocks"], found["of_all_matmuls"], found["audited"]
            record.check(
                f"{name}: share of the linear FLOPs in the chosen blocks", share, f"at least {BAR}", held=share >= BAR
            )
            record.check(
                f"{name}: share of all matrix products",
                seen,
                f"the audit's {audited:.4g}",
                held=abs(audited - seen) < 0.001,
            )


def _run(scene: Scene, recipe: Recipe, family: str) -> dict[str, Any]:
    precision = {"recipe": recipe.name, "required": True}
    path = recipe_of(
        scene,
        f"share {recipe.name} {family}",
        model_of(scene, family, 768, 6),
        MAX_STEPS,
        precision=precision,
        profile={"steps": [MAX_STEPS, MAX_STEPS]},
    )
    seen = path.parent / "witness.json"
    train(scene, path, precision="fp8", witness=seen)
    said = json.loads((checkpoint(path, MAX_STEPS) / "manifest.json").read_text())["precision_facts"]
    found = {"audited": said["matmul_fraction"], "kernels": kernels(path.parent / "runs" / "tiny" / "profile")}
    return cleared(path, {**json.loads(seen.read_text()), **found})


def kernels(folder: Path, most: int = 12) -> dict[str, float]:
    """Microseconds of the GPU's busiest kernels in the profiled step, by name: those of fp8 say so in theirs."""
    times: dict[str, float] = {}
    for path in folder.glob("*.trace.json.gz"):
        for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]:
            if event.get("cat") == "kernel":
                times[event["name"][:120]] = times.get(event["name"][:120], 0.0) + event["dur"]
    return dict(sorted(times.items(), key=lambda item: -item[1])[:most])
