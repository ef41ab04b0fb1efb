"""Where a part plays: on a GPU with TransformerEngine, or on a CPU with a small model and the tests' emulation of fp8."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tests import emulation
from tests.launching import PROJECT, Started, write_recipe
from trainer.config.schema import PrecisionConfig
from trainer.model.build import build_shapes
from trainer.precision.convert import misfit
from trainer.precision.decide import Decision, decide
from trainer.precision.probe import look
from trainer.precision.recipes import RECIPES

WAIT_SECONDS = 550.0


@dataclass(frozen=True)
class Size:
    """A Llama and its batch."""

    width: int
    layers: int
    sequence_length: int
    micro_batch: int
    global_batch: int

    @property
    def tokens(self) -> int:
        """Of a micro-batch."""
        return self.micro_batch * self.sequence_length

    def config(self) -> dict[str, Any]:
        """Heads of 64, and SwiGLU's width in steps of 128, which every recipe likes."""
        return {
            "model_type": "llama", "hidden_size": self.width, "intermediate_size": max(1, round(self.width * 8 / 3 / 128)) * 128,
            "num_hidden_layers": self.layers, "num_attention_heads": max(1, self.width // 64), "tie_word_embeddings": True,
        }  # fmt: skip


class Process:
    """A training run in a process of its own on a GPU; the part of tests.launching.Started that the parts use."""

    def __init__(self, recipe: Path, overrides: tuple[str, ...], precision: str) -> None:
        self._log = recipe.parent / f"output-{time.monotonic_ns()}.log"
        variables = {
            **os.environ, "PYTHONPATH": f"{PROJECT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}", "ACCELERATE_MIXED_PRECISION": precision,
            "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        command = [sys.executable, "-m", "trainer", "train", str(recipe), *overrides]
        with open(self._log, "wb") as output:
            self._process = subprocess.Popen(command, env=variables, stdout=output, stderr=output, cwd=PROJECT)

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def wait(self) -> int:
        return self._process.wait(WAIT_SECONDS)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(30)

    def text(self) -> str:
        return self._log.read_text(errors="replace")


@dataclass(frozen=True)
class Stage:
    """The device, and how large things are on it."""

    emulated: bool
    names: tuple[str, ...]
    """Recipes that are tried."""
    vocab_size: int
    """Of the models that are timed."""
    run_size: Size
    """Of the runs that show wiring: shares, resumes, switches."""
    gap_size: Size
    """Of the runs whose losses are compared."""
    gap_steps: int
    kill_steps: int
    """Steps of a run that is killed in its middle."""
    seeds: tuple[int, ...]
    speed_sizes: tuple[Size, ...]
    speed_rounds: int
    compiled: bool
    """Whether compiled bf16 is timed too."""

    @property
    def device(self) -> str:
        return "cpu" if self.emulated else "cuda"

    def decision(self, recipe: str, size: Size, **wanted: Any) -> Decision:
        """What a run of this size would decide for a recipe, with every block in fp8 unless `wanted` says otherwise."""
        block = PrecisionConfig(**{"recipe": recipe, "bf16_first_blocks": 0, "bf16_last_blocks": 0, **wanted})
        facts = look(self.device, block)
        decision = decide("fp8", facts, block)
        if decision.mode != "fp8":
            return decision
        shapes = build_shapes(None, size.config(), sequence_length=size.sequence_length)
        why = misfit(shapes, RECIPES[recipe], block, micro_batch=size.micro_batch, sequence_length=size.sequence_length)
        return decide("fp8", facts, block, why)

    def recipes(self, size: Size) -> tuple[list[str], dict[str, str]]:
        """Names of the recipes that can be had at a size, and why the others cannot."""
        decisions = {name: self.decision(name, size) for name in self.names}
        there = [name for name, decision in decisions.items() if decision.mode == "fp8"]
        return there, {name: decision.reason for name, decision in decisions.items() if name not in there}

    def write(self, folder: Path, size: Size, **changes: Any) -> Path:
        """A recipe of this size; on a GPU it learns Shakespeare, in an emulation random tokens."""
        folder.mkdir(parents=True, exist_ok=True)
        below: dict[str, Any] = {
            "sequence_length": size.sequence_length, "micro_batch": size.micro_batch, "global_batch": size.global_batch, "model": {"config": size.config()},
            "schedule": {"warmup_steps": 0}, "evaluation": {"every_steps": 10_000, "sample_tokens": 0, "tasks": []},
            "metrics": {"console_every_steps": 50, "histogram_every_steps": 0, "trackers": []},
        }  # fmt: skip
        if not self.emulated:
            below["data"] = {"corpus": "shakespeare", "train": [], "validation": [], "tokenizer": None}
        for key, value in changes.items():
            below[key] = {**below[key], **value} if isinstance(value, dict) and key in below else value
        return write_recipe(folder, **below)

    def start(self, recipe: Path, *overrides: str, precision: str) -> Process | Started:
        """Starts a run of a recipe in a precision."""
        if self.emulated:
            return emulation.start(recipe, *overrides, precision=precision)
        return Process(recipe, overrides, precision)

    def train(self, recipe: Path, *overrides: str, precision: str) -> str:
        """Runs a recipe to its end; returns what it printed."""
        run = self.start(recipe, *overrides, precision=precision)
        code = run.wait()
        assert code == 0, f"exit code {code}\n{run.text()}"
        return run.text()


REAL = Stage(
    emulated=False, names=tuple(RECIPES), vocab_size=32_000, run_size=Size(256, 4, 256, 16, 32), gap_size=Size(512, 8, 512, 16, 16),
    gap_steps=300, kill_steps=120, seeds=(0, 1, 2),
    speed_sizes=(Size(768, 12, 1024, 8, 8), Size(1600, 8, 1024, 8, 8), Size(2048, 6, 1024, 8, 8), Size(4096, 2, 1024, 8, 8)), speed_rounds=2, compiled=True,
)  # fmt: skip
EMULATED = replace(
    REAL, emulated=True, names=("current", "delayed", "block"), vocab_size=512, run_size=Size(128, 2, 64, 2, 4), gap_size=Size(128, 3, 64, 2, 4),
    gap_steps=8, kill_steps=24, seeds=(0,), speed_sizes=(Size(64, 1, 64, 2, 2), Size(128, 1, 64, 2, 2)), speed_rounds=1, compiled=False,
)  # fmt: skip


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for the runs of a part."""
    with tempfile.TemporaryDirectory(prefix="gpu-run-") as folder:
        yield Path(folder)


def missing() -> str | None:
    """Why this machine cannot play the real thing, in a paragraph; None when it can."""
    if torch.cuda.is_available():
        return None
    return (
        "there is no CUDA device that torch can use here, and these parts show what only a GPU can: fp8 through TransformerEngine on a Hopper GPU "
        "(probe, share, gap, resume, switch, speed), the stall of a checkpoint, and tests/gpu; run it on a machine with one, or try the script itself "
        "with --emulate, which shows nothing"
    )
