"""What the benchmarks of a whole step share: the model and optimizer of a recipe, steps as the loop takes them, and what machine it was."""

import os
import platform
import re
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import TorchDynamoPlugin
from accelerate.utils.other import compile_regions

from trainer.config.load import load
from trainer.config.schema import Config
from trainer.model.build import build_model
from trainer.model.resolve import resolve
from trainer.optim.build import build_optimizer

WARM_UP_STEPS = 3
"""The first compiles, the next fill caches."""


def machine() -> dict[str, Any]:
    """What a figure depends on: processor, its arithmetic, cores, versions."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    flags = set((re.search(r"^flags\s*:(.*)$", info, re.MULTILINE) or [None, ""])[1].split())
    model = re.search(r"^model name\s*:\s*(.*)$", info, re.MULTILINE)
    number = re.search(r"^cpu family\s*:\s*(\d+)\nmodel\s*:\s*(\d+)", info, re.MULTILINE)
    return {
        "cpu": f"{model[1] if model else platform.machine()}{f' (family {number[1]}, model {number[2]})' if number else ''}",
        "cores": len(os.sched_getaffinity(0)),
        "avx512": "avx512f" in flags,
        "bf16_arithmetic": bool(flags & {"avx512_bf16", "amx_bf16"}),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "threads": torch.get_num_threads(),
    }


class Workload:
    """The model of a recipe with random tokens, compiled as the shipped cluster files compile it."""

    def __init__(self, recipe: str, *overrides: str, vocab_size: int = 4096, compiled: bool = True) -> None:
        self.config: Config = load(recipe, list(overrides)).config
        sequence_length = self.config.sequence_length
        fields = resolve(
            self.config.model.preset,
            self.config.model.config,
            vocab_size=vocab_size,
            sequence_length=sequence_length,
            eot_id=None,
        )
        self.bare = build_model(fields, vocab_size=vocab_size, seed=0, device="cpu")
        self.model = (
            compile_regions(self.bare, **TorchDynamoPlugin(backend="INDUCTOR", dynamic=False).to_kwargs())
            if compiled
            else self.bare
        )
        generator = torch.Generator().manual_seed(0)
        self._tokens = torch.randint(vocab_size, (self.config.micro_batch, sequence_length + 1), generator=generator)

    def optimizer(self) -> torch.optim.Optimizer:
        """The recipe's, over this model."""
        return build_optimizer(self.bare, self.config.optimizer)

    def gradients(self) -> float:
        """Forward and backward over the micro-batches of one step; returns the seconds."""
        started = time.perf_counter()
        self.bare.zero_grad()
        for _ in range(self.config.global_batch // self.config.micro_batch):
            self.model(self._tokens[:, :-1], labels=self._tokens[:, 1:]).backward()
        return time.perf_counter() - started

    def update(self, optimizer: torch.optim.Optimizer) -> float:
        """Clips and updates; returns the seconds."""
        started = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(self.bare.parameters(), self.config.optimizer.max_grad_norm)
        optimizer.step()
        return time.perf_counter() - started
