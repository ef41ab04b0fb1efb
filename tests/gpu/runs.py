"""Whole runs of the trainer in processes of their own: on the GPU, or emulated on the CPU with the stand-in and a tiny model."""

import contextlib
import functools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.gpu import syncs as waits
from tests.gpu import witness as witnessed
from tests.launching import PROJECT, Started, checkpoint, final_bytes, outcome, steps, wait_for_step, write_recipe
from trainer.precision.decide import Facts, lacking
from trainer.precision.probe import probe_device
from trainer.precision.recipes import RECIPES, Recipe

HOPPER = Facts("cuda", has_bf16=True, gpu="emulated", capability=(9, 0), cuda=(13, 0))
"""Whose recipes an emulation goes through."""

FAMILIES = ("gpt2", "llama")
"""Of models: Conv1D and Linear in their blocks."""

LIMIT_SECONDS = 400.0
"""A run that takes longer than this hangs."""


@dataclass(frozen=True)
class Scene:
    """Where a part is measured."""

    emulated: bool
    work: Path
    """Folder for runs and their checkpoints."""

    @property
    def device_type(self) -> str:
        return "cpu" if self.emulated else "cuda"

    @property
    def at_once(self) -> int:
        """So many runs side by side; none of them is timed."""
        return self.sized(4, 2)

    def recipes(self) -> list[Recipe]:
        """The fp8 recipes that this GPU has. Nothing is computed for it: a layer of delayed scaling would be updated for as long as the process lives."""
        facts = HOPPER if self.emulated else probe_device("cuda")
        return [recipe for recipe in RECIPES.values() if lacking(recipe, facts) is None]

    def label(self, precision: str) -> str:
        """What a record calls a run in this precision."""
        return "fp8 emulation" if self.emulated and precision == "fp8" else precision

    def sized(self, on_gpu: Any, emulated: Any) -> Any:
        """A size, by whether it is for real."""
        return emulated if self.emulated else on_gpu


def model_of(scene: Scene, family: str, width: int, layers: int, dropout: float = 0.0) -> dict[str, Any]:
    """Fields of a transformers config; emulated it is 128 wide and has 3 blocks, one of which may be in fp8."""
    width, layers = scene.sized((width, layers), (128, 3))
    if family == "gpt2":
        drops = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
        return {"model_type": "gpt2", "n_embd": width, "n_layer": layers, "n_head": width // 64, **drops}
    return {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": -(-width * 8 // 3 // 128) * 128,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "attention_dropout": dropout,
        "tie_word_embeddings": True,
    }


def recipe_of(scene: Scene, name: str, model: dict[str, Any], max_steps: int, **changes: Any) -> Path:
    """A recipe in a folder of its own, emptied. Text of Shakespeare's as bytes, 8 sequences of 1,024 a step; emulated random tokens, 4 of 64."""
    folder = scene.work / name.replace(" ", "-").replace(",", "")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    settings = {
        "max_steps": max_steps,
        "sequence_length": 1024,
        "global_batch": 8,
        "micro_batch": 8,
        "model": {"config": model},
        "data": {"corpus": "shakespeare", "train": [], "validation": [], "tokenizer": "bytes"},
        "optimizer": {"lr": 6e-4},
        "schedule": {"warmup_steps": max_steps // 10},
        "evaluation": {"every_steps": max_steps},
        "checkpoint": {"every_steps": max_steps},
        "metrics": {"trackers": [], "console_every_steps": 20},
    }
    if scene.emulated:
        settings |= {"sequence_length": 64, "global_batch": 4, "micro_batch": 2}
        del settings["data"]
    return write_recipe(folder, **{**settings, **changes})


def cleared(recipe: Path, found: dict[str, Any]) -> dict[str, Any]:
    """What was found in a run, whose folder is removed: all of them together would need tens of GB."""
    shutil.rmtree(recipe.parent, ignore_errors=True)  # what is left there is no reason to lose what was found
    return found


class Launched:
    """A run in a process of its own."""

    def __init__(self, words: Sequence[str], output: Path, environment: dict[str, str]) -> None:
        self.output = output
        with open(output, "ab") as file:
            self._process = subprocess.Popen(
                words, cwd=PROJECT, env={**os.environ, **environment}, stdout=file, stderr=file
            )

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL to the ranks and then to their launcher; a rank's writer lives on and saves what is in memory."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self._process.pid).children():
                process.kill()
        self._process.kill()
        self._process.wait()

    def wait(self, timeout: float = LIMIT_SECONDS) -> int:
        """Its exit code; one that hangs is killed."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the run did not end in {timeout} s:\n{self.text()[-2000:]}") from None

    def text(self) -> str:
        return self.output.read_text(errors="replace")


def words_of(
    recipe: Path, overrides: Sequence[str], cluster: Path, *, watched: tuple[str, Path] | None = None
) -> list[str]:
    """The command of a run, through `accelerate launch`; `watched` by a module of this folder, which writes a file."""
    module = [f"tests.gpu.{watched[0]}", str(watched[1])] if watched else ["trainer"]
    return [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(cluster),
        "-m",
        *module,
        "train",
        str(recipe),
        *overrides,
    ]


def cluster_of(folder: Path, precision: str) -> Path:
    """The shipped cluster file of one GPU in this precision, as it is; where none is shipped, that of bf16 with its switch turned."""
    shipped = PROJECT / "accelerate_configs" / f"1gpu_{precision}.yaml"
    if shipped.is_file():
        return shipped
    content = yaml.safe_load(shipped.with_name("1gpu_bf16.yaml").read_text())
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump({**content, "mixed_precision": precision}))
    return path


def start(
    scene: Scene, recipe: Path, *overrides: str, precision: str, witness: Path | None = None, syncs: Path | None = None
) -> Launched | Started:
    """Starts a run as it is shipped: accelerate launch, its process group, compiled blocks. Emulated, it is a process that is told its precision.

    witness   has at its end what computed in fp8
    syncs     has at its end what waited for the device
    """
    if scene.emulated:
        before = functools.partial(_before_an_emulated_run, witness, syncs)
        return Started(recipe, overrides, 1, before, environment={"ACCELERATE_MIXED_PRECISION": precision})
    watched = ("witness", witness) if witness else ("syncs", syncs) if syncs else None
    words = words_of(recipe, overrides, cluster_of(recipe.parent, precision), watched=watched)
    return Launched(
        words,
        recipe.parent / f"output-{time.monotonic_ns()}.log",
        {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
    )


def _before_an_emulated_run(witness: Path | None, syncs: Path | None) -> None:
    """Called in a forked rank before it runs."""
    witnessed.before_an_emulated_run(witness)
    if syncs is not None:
        waits.watch(syncs)


def ended(recipe: Path, run: Launched | Started) -> str:
    """What a run printed, once it has finished; raises where it does not finish."""
    code = run.wait(LIMIT_SECONDS)
    said = run.text().strip()
    assert code == 0, f"exit code {code}: {said.splitlines()[-1] if said else 'it said nothing'}\n{said[-3000:]}"
    assert outcome(recipe)["outcome"] == "finished", outcome(recipe)
    return run.text()


def train(
    scene: Scene, recipe: Path, *overrides: str, precision: str, witness: Path | None = None, syncs: Path | None = None
) -> str:
    """Runs to the end and returns what was printed; raises where it does not finish."""
    return ended(recipe, start(scene, recipe, *overrides, precision=precision, witness=witness, syncs=syncs))


def killed_and_resumed(
    scene: Scene, straight: Path, killed: Path, max_steps: int, every: int, *, precision: str
) -> dict[str, Any]:
    """Two runs of one recipe, of which the second is killed with SIGKILL in its middle and started again: what of them is equal.

    every   steps between two checkpoints
    """
    whole, run = (start(scene, recipe, precision=precision) for recipe in (straight, killed))
    wait_for_step(killed, max_steps // 2 + every // 2, run, timeout=300.0)
    was_running = run.running
    run.kill()
    killed_after = len(steps(killed))
    ended(straight, whole)
    train(scene, killed, precision=precision)
    ours, theirs = (final_bytes(recipe, max_steps) for recipe in (killed, straight))
    numbers = [[(record["loss"], record["grad_norm"]) for record in steps(recipe)] for recipe in (killed, straight)]
    label, said = (
        json.loads((checkpoint(killed, max_steps) / "manifest.json").read_text())["precision"],
        outcome(killed)["resume"],
    )
    lost = (killed.parent / "runs" / "tiny" / "metrics.lost.jsonl").exists()
    holds = {
        "it was killed while it ran": was_running and killed_after < max_steps,
        "weights are equal": ours["model.safetensors"] == theirs["model.safetensors"],
        "moments are equal": ours["optimizer.bin"] == theirs["optimizer.bin"],
        "losses and norms are equal": numbers[0] == numbers[1] and len(numbers[0]) == max_steps,
        "replayed steps are exact": not lost or str(said).startswith("resume exact: "),
        f"it ran in {precision}": label == scene.label(precision),
    }
    return cleared(straight, cleared(killed, {"holds": holds, "killed_after": killed_after, "said": said}))


def step_seconds(recipe: Path) -> float:
    """Median time of a step, without the first tenth."""
    times = [record["step_seconds"] for record in steps(recipe)]
    return statistics.median(times[len(times) // 10 :])
