"""A run with a witness: hooks that see which linear layers computed in fp8, whatever the trainer says of itself.

    python -m tests.gpu.witness FILE train RECIPE ...

does what `python -m trainer train RECIPE ...` does, and writes to FILE at the end of training what the witness saw.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests import emulation


class Witness:
    """Counts the arithmetic of every layer with a matrix in the blocks of a model in training mode, and how much of it was in fp8.

    A layer of TransformerEngine notes in its forward pass whether it computes in fp8 (`fp8`, set from its global state). That note is wiped
    before each call, so what stands there after it is of this call. The backward pass costs twice the forward.
    """

    def __init__(self, embedding: nn.Module, blocks: nn.ModuleList, *, first: int, last: int) -> None:
        """`first` and `last` so many blocks at either end were not chosen for fp8."""
        self._all, self._fp8, self._tokens = Counter(), Counter(), 0
        self._chosen = range(first, len(blocks) - last)
        embedding.register_forward_hook(self._see_tokens)
        for number, block in enumerate(blocks):
            for name, module in block.named_modules():
                if getattr(getattr(module, "weight", None), "ndim", 0) == 2:
                    module.register_forward_pre_hook(_wipe)
                    module.register_forward_hook(self._note(number, name))

    def _see_tokens(self, module: nn.Module, inputs: tuple[torch.Tensor, ...], _: Any) -> None:
        self._tokens += inputs[0].numel() if module.training else 0

    def _note(self, block: int, name: str) -> Callable[..., None]:
        def note(module: nn.Module, inputs: tuple[torch.Tensor, ...], _: Any) -> None:
            if module.training:
                flops = 6 * inputs[0].numel() // inputs[0].shape[-1] * module.weight.numel()
                self._all[block, name] += flops
                self._fp8[block, name] += flops if getattr(module, "fp8", False) else 0

        return note

    def facts(self, flops_per_token: float) -> dict[str, Any]:
        """Shares of the arithmetic so far that was in fp8, and the layers of the chosen blocks that were not always."""
        chosen = [layer for layer in self._all if layer[0] in self._chosen]
        return {
            "of_chosen_blocks": sum(self._fp8[layer] for layer in chosen)
            / max(1, sum(self._all[layer] for layer in chosen)),
            "of_all_blocks": self._fp8.total() / max(1, self._all.total()),
            "of_all_matmuls": self._fp8.total() / max(1, flops_per_token * self._tokens),
            "layers_seen": len(self._all),
            "not_in_fp8": [
                f"{block}.{name}" for block, name in chosen if self._fp8[block, name] < self._all[block, name]
            ],
        }


def _wipe(module: nn.Module, _: Any) -> None:
    if hasattr(module, "fp8"):
        module.fp8 = False


def watch(path: Path) -> None:
    """Lets the next run of this process be watched."""
    from trainer import session
    from trainer.model.flops import flops_per_token
    from trainer.precision.convert import find_blocks

    train = session.train

    def watched(run: Any) -> Any:
        model, wanted = run.bare_model, run.config.precision
        seen = Witness(
            model.get_input_embeddings(),
            find_blocks(model)[1],
            first=wanted.bf16_first_blocks,
            last=wanted.bf16_last_blocks,
        )
        outcome = train(run)
        path.write_text(json.dumps(seen.facts(flops_per_token(model, run.config.sequence_length))))
        return outcome

    session.train = watched


def before_an_emulated_run(path: Path | None) -> None:
    """Called in a forked rank before it runs; on one thread, since several run side by side."""
    from trainer.launch import environment

    emulation.install()
    environment.num_cores = lambda: 1
    if path is not None:
        watch(path)


if __name__ == "__main__":
    from trainer.cli import main

    watch(Path(sys.argv.pop(1)))
    sys.argv[0] = "trainer"
    main()
