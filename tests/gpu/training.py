"""Parts that train: how much is in fp8, how far its loss is from bf16's, what a kill costs, and changes of precision on the way."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import AutoModelForCausalLM

from tests.gpu.shown import Bar, Shown
from tests.gpu.stage import Size, Stage, scratch
from tests.launching import checkpoint, final_bytes, outcome, records, steps, wait_for_step
from trainer.precision.recipes import RECIPES

LEAST_SHARE = 0.99
"""Of the linear arithmetic of the blocks that were chosen for fp8."""
MOST_GAP = 0.005
"""Relative, of training and validation loss, on every seed."""
TAIL_STEPS = 50
"""So many last steps' mean is the training loss of a run."""
HOPPER = ("current", "delayed", "block")
WHOLE = {"bf16_first_blocks": 0, "bf16_last_blocks": 0}


def wanted(stage: Stage, size: Size) -> tuple[list[str], list[Bar]]:
    """The recipes that a part runs, and a missed bar for each of Hopper's that cannot be had."""
    there, lacking = stage.recipes(size)
    return there, [Bar(f"{name}", f"not available: {lacking[name]}", "runs", passed=False) for name in HOPPER if name in lacking]


def share(stage: Stage) -> Shown:
    """What was in fp8 in a short run of each recipe: the run itself refuses layers that did not compute in it."""
    names, bars = wanted(stage, stage.run_size)
    facts: dict[str, Any] = {}
    with scratch() as folder:
        for name in names:
            recipe = stage.write(folder / name, stage.run_size, max_steps=3, precision={**WHOLE, "recipe": name})
            stage.train(recipe, precision="fp8")
            found = json.loads((checkpoint(recipe, 3) / "manifest.json").read_text())
            facts[name] = {"label": found["precision"], **found["precision_facts"]}
            blocks, everything = found["precision_facts"]["block_fraction"], found["precision_facts"]["matmul_fraction"]
            bars.append(Bar(f"{name}: linear arithmetic of the blocks in fp8", f"{blocks:.1%}", ">= 99 %", passed=blocks >= LEAST_SHARE))
            bars.append(Bar(f"{name}: of all matrix products", f"{everything:.1%}", "none"))
    return Shown("share", bars, facts)


def gap(stage: Stage) -> Shown:
    """The same data in bf16 and in each recipe, with the blocks that a recipe of the user's has in fp8, over several seeds."""
    names, bars = wanted(stage, stage.gap_size)
    ways: dict[str, tuple[str, dict[str, Any]]] = {"bf16": ("bf16", {}), **{name: ("fp8", {"recipe": name}) for name in names}}
    losses: dict[str, dict[int, tuple[float, float]]] = {way: {} for way in ways}
    with scratch() as folder:
        for seed in stage.seeds:
            for way, (precision, block) in ways.items():
                recipe = stage.write(
                    folder / f"{way}-{seed}", stage.gap_size, seed=seed, max_steps=stage.gap_steps, precision=block, schedule={"warmup_steps": stage.gap_steps // 10}
                )
                stage.train(recipe, precision=precision)
                losses[way][seed] = _losses(recipe)
    for name in names:
        gaps = gaps_of(losses[name], losses["bf16"])
        worst = max((gap for pair in gaps.values() for gap in pair), key=abs)
        shown = ", ".join(f"{training:+.3%} / {validation:+.3%}" for training, validation in gaps.values())
        bars.append(Bar(f"{name}: loss against bf16 after {stage.gap_steps} steps, training / validation by seed", shown, "< 0.5 %", passed=abs(worst) < MOST_GAP))
    facts = {"size": vars(stage.gap_size), "steps": stage.gap_steps, "losses": losses}
    return Shown("gap", bars, facts)


def _losses(recipe: Path) -> tuple[float, float]:
    """Mean training loss of the last steps, and the last validation loss."""
    tail = [record["loss"] for record in steps(recipe)][-TAIL_STEPS:]
    return statistics.fmean(tail), [record["val_loss"] for record in records(recipe) if "val_loss" in record][-1]


def gaps_of(ours: Mapping[int, Sequence[float]], reference: Mapping[int, Sequence[float]]) -> dict[int, tuple[float, float]]:
    """Relative gaps of training and validation loss by seed."""
    return {seed: tuple(mine / theirs - 1 for mine, theirs in zip(ours[seed], reference[seed], strict=True)) for seed in ours}


def resume(stage: Stage) -> Shown:
    """A run that is killed and resumed beside one that is not, with deterministic: true, and what that costs."""
    names, bars = wanted(stage, stage.run_size)
    facts: dict[str, Any] = {}
    end, every = stage.kill_steps, stage.kill_steps // 4
    with scratch() as folder:
        for name in names:
            settings = {"max_steps": end, "checkpoint": {"every_steps": every, "keep_last": 3}, "precision": {**WHOLE, "recipe": name}}
            straight, killed, loose = (
                stage.write(folder / f"{name}-{kind}", stage.run_size, deterministic=kind != "loose", **settings) for kind in ("straight", "killed", "loose")
            )
            for recipe in (straight, loose):
                stage.train(recipe, precision="fp8")
            run = stage.start(killed, precision="fp8")
            wait_for_step(killed, 2 * every + every // 2, run)
            run.kill()
            stage.train(killed, precision="fp8")
            verdict = outcome(killed)["resume"]
            equal = final_bytes(killed, end) == final_bytes(straight, end)
            losses = [record["loss"] for record in steps(killed)] == [record["loss"] for record in steps(straight)]
            exact = equal and losses and verdict.startswith("resume exact")
            said = f"{verdict}; final weights and moments {'equal' if equal else 'DIFFER'}, losses {'equal' if losses else 'DIFFER'}"
            bars.append(Bar(f"{name}: killed and resumed", said, "bit-identical" if RECIPES[name].stateless else "none: it has a state", passed=exact or not RECIPES[name].stateless))
            with_it, without = _step_seconds(straight), _step_seconds(loose)
            bars.append(Bar(f"{name}: a step with deterministic: true", f"{with_it / without:.3f} x one without ({with_it * 1e3:.1f} ms)", "none"))
            facts[name] = {"verdict": verdict, "equal_files": equal, "equal_losses": losses, "step_seconds": with_it, "step_seconds_loose": without}
    return Shown("resume", bars, facts)


def _step_seconds(recipe: Path) -> float:
    """The median without the first quarter, in which things warm up."""
    seconds = [record["step_seconds"] for record in steps(recipe)]
    return statistics.median(seconds[len(seconds) // 4 :])


def switch(stage: Stage) -> Shown:
    """fp8, bf16 and fp8 again in one run, by the precision alone; its files and its export beside those of a bf16 run."""
    names, bars = wanted(stage, stage.run_size)
    name = "current"
    if name not in names:
        return Shown("switch", bars)
    bars = []
    third = max(2, stage.kill_steps // 12)
    settings = {"schedule": {"name": "constant", "warmup_steps": 0}, "precision": {**WHOLE, "recipe": name}, "checkpoint": {"every_steps": third, "keep_last": 5}}
    with scratch() as folder:
        mixed, plain = (stage.write(folder / kind, stage.run_size, **settings) for kind in ("mixed", "plain"))
        labels = []
        for number, precision in enumerate(("fp8", "bf16", "fp8"), start=1):
            said = stage.train(mixed, f"max_steps={number * third}", precision=precision)
            assert number == 1 or "resumed from" in said, said
            labels.append(json.loads((checkpoint(mixed, number * third) / "manifest.json").read_text())["precision"])
        stage.train(plain, f"max_steps={3 * third}", precision="bf16")
        bars.append(Bar("fp8 -> bf16 -> fp8, by the manifests", " -> ".join(labels), "each as launched", passed=labels[1] == "bf16" and "fp8" in labels[0] and labels[0] == labels[2]))
        same = [record["data_digest"] for record in steps(mixed)] == [record["data_digest"] for record in steps(plain)]
        bars.append(Bar("data of the steps", "equal" if same else "DIFFER", "as in bf16 alone", passed=same))
        forms = [_form(checkpoint(recipe, 3 * third) / "model.safetensors") for recipe in (mixed, plain)]
        bars.append(Bar("keys, shapes and types of the checkpoint", "equal" if forms[0] == forms[1] else "DIFFER", "as of a bf16 run", passed=forms[0] == forms[1]))
        exported = [recipe.parent / "runs" / "tiny" / "exported" for recipe in (mixed, plain)]
        forms = [_form(path / "model.safetensors") for path in exported]
        AutoModelForCausalLM.from_pretrained(exported[0])
        bars.append(Bar("export", "equal in form, opened by transformers" if forms[0] == forms[1] else "DIFFERS", "as of a bf16 run", passed=forms[0] == forms[1]))
    return Shown("switch", bars, {"labels": labels})


def _form(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    with safe_open(path, "pt") as file:
        return {key: (tuple(file.get_slice(key).get_shape()), file.get_slice(key).get_dtype()) for key in file.keys()}
