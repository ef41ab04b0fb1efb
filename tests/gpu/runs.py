"""Whole runs of the trainer in processes of their own: on the GPU, or emulated on the CPU with the stand-in and a tiny model."""

import functools
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

import yaml

from tests.gpu import witness as witnessed
from tests.launching import PROJECT, Started, outcome, steps, write_recipe
from trainer.precision.decide import Facts, lacking
from trainer.precision.probe import look
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
        facts = HOPPER if self.emulated else look("cuda")
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
        "model_type": "llama", "hidden_size": width, "intermediate_size": -(-width * 8 // 3 // 128) * 128, "num_hidden_layers": layers,
        "num_attention_heads": width // 64, "attention_dropout": dropout, "tie_word_embeddings": True,
    }  # fmt: skip


def recipe_of(scene: Scene, name: str, model: dict[str, Any], max_steps: int, **changes: Any) -> Path:
    """A recipe in a folder of its own, emptied. Text of Shakespeare's as bytes, 8 sequences of 512 a step; emulated random tokens, 4 of 64."""
    folder = scene.work / name.replace(" ", "-").replace(",", "")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    settings = {
        "max_steps": max_steps, "sequence_length": 512, "global_batch": 8, "micro_batch": 8, "model": {"config": model},
        "data": {"corpus": "shakespeare", "train": [], "validation": [], "tokenizer": "bytes"}, "optimizer": {"lr": 6e-4},
        "schedule": {"warmup_steps": max_steps // 10}, "evaluation": {"every_steps": max_steps}, "checkpoint": {"every_steps": max_steps},
        "metrics": {"trackers": [], "console_every_steps": 20},
    }  # fmt: skip
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
            self._process = subprocess.Popen(words, cwd=PROJECT, env={**os.environ, **environment}, stdout=file, stderr=file)

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL to the trainer; its writer lives on and saves what is in memory."""
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


def words_of(recipe: Path, overrides: Sequence[str], *, witness: Path | None = None, cluster: Path | None = None) -> list[str]:
    """The command of a run: plain, with a witness, or through `accelerate launch`."""
    train = ["train", str(recipe), *overrides]
    if cluster:
        return [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(cluster), "-m", "trainer", *train]
    return [sys.executable, "-m", *(["tests.gpu.witness", str(witness)] if witness else ["trainer"]), *train]


def cluster_of(folder: Path, precision: str) -> Path:
    """The shipped cluster file of one GPU, edited: this precision, and no torch.compile, which takes longer than such a run."""
    content = yaml.safe_load((PROJECT / "accelerate_configs" / "1gpu_fp8.yaml").read_text())
    del content["dynamo_config"]
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump({**content, "mixed_precision": precision}))
    return path


def start(scene: Scene, recipe: Path, *overrides: str, precision: str, witness: Path | None = None, by_cluster: bool = False) -> Launched | Started:
    """Starts a run; at its end the `witness` has what computed in fp8. Emulated, the precision comes the way `accelerate launch` would hand it over."""
    asked = {"ACCELERATE_MIXED_PRECISION": precision}
    if scene.emulated:
        before = functools.partial(witnessed.before_an_emulated_run, witness)
        return Started(recipe, overrides, 1, before, environment=asked)
    words = words_of(recipe, overrides, witness=witness, cluster=cluster_of(recipe.parent, precision) if by_cluster else None)
    here = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **({} if by_cluster else asked)}
    return Launched(words, recipe.parent / f"output-{time.monotonic_ns()}.log", here)


def ended(recipe: Path, run: Launched | Started) -> str:
    """What a run printed, once it has finished; raises where it does not finish."""
    code = run.wait(LIMIT_SECONDS)
    said = run.text().strip()
    assert code == 0, f"exit code {code}: {said.splitlines()[-1] if said else 'it said nothing'}\n{said[-3000:]}"
    assert outcome(recipe)["outcome"] == "finished", outcome(recipe)
    return run.text()


def train(scene: Scene, recipe: Path, *overrides: str, precision: str, witness: Path | None = None, by_cluster: bool = False) -> str:
    """Runs to the end and returns what was printed; raises where it does not finish."""
    return ended(recipe, start(scene, recipe, *overrides, precision=precision, witness=witness, by_cluster=by_cluster))


def step_seconds(recipe: Path) -> float:
    """Median time of a step, without the first tenth."""
    times = [record["step_seconds"] for record in steps(recipe)]
    return statistics.median(times[len(times) // 10 :])
