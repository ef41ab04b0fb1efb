"""Part `switch`: one run goes from fp8 to bf16 and back because its cluster file is edited, and a run in bf16 beside it.

Accelerate and the trainer load strictly: a key too many or too few would end the run.
"""

import functools
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.gpu.record import Record
from tests.gpu.runs import FAMILIES, Scene, cleared, ended, model_of, recipe_of, start, train
from tests.launching import checkpoint, steps

LEGS = ("fp8", "bf16", "fp8")

MAX_GAP = 0.02
"""Relative, of any step's loss against the run in bf16: a run that had lost its weights or moments would be far above."""


def measure(scene: Scene, record: Record) -> None:
    """Switches with the first recipe the GPU has, in both families of models."""
    works = {family: functools.partial(_switch, scene, family) for family in scene.sized(FAMILIES, FAMILIES[1:])}
    for family, found in record.side_by_side(works, max(1, scene.at_once // 2)).items():
        if found:
            labels = [scene.label(precision) for precision in LEGS]
            record.check(
                f"{family}: precisions of the launches",
                found["precisions"],
                " -> ".join(labels),
                held=found["precisions"] == labels,
            )
            for name, held in found["holds"].items():
                record.check(f"{family}: {name}", held, "true", held=held)
            gap = found["largest_gap"]
            record.check(
                f"{family}: largest gap of a step's loss to bf16", gap, f"at most {MAX_GAP:.0%}", held=gap <= MAX_GAP
            )


def _switch(scene: Scene, family: str) -> dict[str, Any]:
    each = scene.sized(20, 4)
    last = each * len(LEGS)
    fixed = {
        "schedule": {"name": "constant", "warmup_steps": 0},
        "precision": {"recipe": scene.recipes()[0].name, "required": True},
    }
    mixed, plain = (
        recipe_of(scene, f"switch {family} {which}", model_of(scene, family, 768, 6), last, **fixed)
        for which in ("mixed", "plain")
    )
    beside = start(scene, plain, precision="bf16")
    precisions, forms, went_on = [], [], True
    for number, precision in enumerate(LEGS, start=1):
        said = train(scene, mixed, f"max_steps={number * each}", precision=precision)
        saved = checkpoint(mixed, number * each)
        precisions.append(json.loads((saved / "manifest.json").read_text())["precision"])
        forms.append(form(saved / "model.safetensors"))
        went_on = went_on and (number == 1 or "resumed from" in said)
    ended(plain, beside)
    exported = [exported_form(path.parent / "runs" / "tiny" / "exported") for path in (mixed, plain)]
    ours, theirs = steps(mixed), steps(plain)
    holds = {
        "each launch went on and lost no step": went_on
        and [record["step"] for record in ours] == list(range(1, last + 1)),
        "checkpoints have a bf16 run's keys and shapes": all(
            each == form(checkpoint(plain, last) / "model.safetensors") for each in forms
        ),
        "the export is a bf16 run's but for the numbers": exported[0] == exported[1],
        "the data was the same": [record["data_digest"] for record in ours]
        == [record["data_digest"] for record in theirs],
    }
    gap = max(abs(a["loss"] / b["loss"] - 1.0) for a, b in zip(ours, theirs, strict=True))
    return cleared(mixed, cleared(plain, {"precisions": precisions, "holds": holds, "largest_gap": gap}))


def form(path: Path) -> list[tuple[str, str]]:
    """Names, shapes and types of what a file holds, in words."""
    return [(name, f"{list(tensor.shape)} {tensor.dtype}") for name, tensor in sorted(load_file(path).items())]


def exported_form(folder: Path) -> dict[str, Any]:
    """What an exported folder is, but for the numbers; transformers opens it."""
    opened = AutoModelForCausalLM.from_pretrained(folder)
    assert all(torch.isfinite(parameter).all() for parameter in opened.parameters()), (
        f"{folder} holds what is not finite"
    )
    names = sorted(path.name for path in folder.iterdir())
    return {
        "files": names,
        "tensors": form(folder / "model.safetensors"),
        "config": json.loads((folder / "config.json").read_text()),
    }
