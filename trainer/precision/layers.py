"""Layers that compute in fp8 and are, to everything else, the layers they replace: same parameters, same keys, same order.

An fp8 layer is TransformerEngine's linear layer around the parameters of the layer it replaces. It enters the recipe in its own forward
pass, so it runs in fp8 wherever it is called from: under DistributedDataParallel, under FSDP2 (which Accelerate leaves without any fp8
context) and in the recomputation of activation checkpointing (which is outside of Accelerate's). Evaluation, generation and a run that went
back to bf16 take the replaced layer's own arithmetic, not TransformerEngine's in bf16, so they are bit for bit what a bf16 run computes.

GPT-2's Conv1D keeps its parameter [in, out]: TransformerEngine is handed the transposed view. It quantises a contiguous copy of what it is
given (pytorch/csrc/extensions/cast.cpp, and `update_quantized` where a cached copy is refreshed), reads nothing else of a weight but its
shape, and returns the gradient [out, in], which autograd transposes back. So a checkpoint of an fp8 run is one of a bf16 run.
"""

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.precision import backend


@dataclass
class Switch:
    """What all fp8 layers of a model share: the recipe, and whether it applies just now."""

    autocast: Callable[..., contextlib.AbstractContextManager]
    """TransformerEngine's."""
    made: Any
    """TransformerEngine's recipe."""
    around_model: bool = False
    """Whether one context stands around all blocks, as delayed scaling needs: it updates its scales whenever the outermost one ends."""
    enabled: bool = True
    """False once the run has gone back to bf16."""
    in_evaluation: bool = False
    """Whether evaluation mode computes in fp8 too: while the loss is compared with bf16's."""
    first_micro_batch: bool | None = None
    """Whether this is the first micro-batch after an update of the weights; None: fp8 copies of the weights are not kept between them."""

    def applies(self, training: bool) -> bool:
        """Whether a layer in this mode computes in fp8."""
        return self.enabled and (training or self.in_evaluation)

    @property
    def takes_bf16_only(self) -> bool:
        """Whether the recipe refuses other inputs: NVFP4's Hadamard transform does, and a norm under autocast gives fp32."""
        return self.made.nvfp4()

    @property
    def forward_only(self) -> bool:
        """Whether the backward pass is not in fp8, as an option of the recipe or an environment variable of TransformerEngine has it."""
        return getattr(self.made, "backward_override", None) is not None

    def context(self) -> contextlib.AbstractContextManager:
        """The recipe's context, to be entered once."""
        return self.autocast(enabled=True, recipe=self.made)


Mixin: Any = nn.Module if TYPE_CHECKING else object
"""What a checker takes an fp8 layer for; the module is the other base class."""


class Fp8Layer(Mixin):
    """The part of an fp8 layer that is not TransformerEngine's; the other base class is `te.Linear`, a module."""

    # Without TransformerEngine's `_extra_state`: Accelerate's save drops all but one of them and its load then dies, and a stateless
    # recipe has nothing in it. torch looks for the override in the class.
    get_extra_state = nn.Module.get_extra_state
    set_extra_state = nn.Module.set_extra_state

    ran_in_fp8 = False
    """Whether TransformerEngine has computed in fp8 here since somebody last set it to False."""

    def __init__(self, replaced: nn.Module, switch: Switch, in_features: int, out_features: int) -> None:
        # On the meta device nothing is allocated and no random number is drawn.
        super().__init__(
            in_features, out_features, bias=replaced.bias is not None, params_dtype=replaced.weight.dtype, device="meta"
        )
        self.weight = replaced.weight
        if replaced.bias is not None:
            self.bias = replaced.bias
        self.switch = switch
        self.train(replaced.training)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out], in fp8 where the switch says so."""
        switch = self.switch
        if not switch.applies(self.training):
            return self.plain_forward(x)
        if switch.takes_bf16_only:
            x = x.to(torch.bfloat16)
        with contextlib.nullcontext() if switch.around_model else switch.context():
            y = super().forward(x, is_first_microbatch=switch.first_micro_batch)
        if not self.ran_in_fp8:
            self.ran_in_fp8 = bool(self.fp8)
        return y

    def plain_forward(self, x: Tensor) -> Tensor:
        """What the replaced layer computes."""
        raise NotImplementedError


@functools.cache
def fp8_classes() -> dict[str, type]:
    """The fp8 layer for each kind of layer it can replace: `Linear` and GPT-2's `Conv1D`."""
    te_linear: Any = backend.load().pytorch.Linear

    class Fp8Linear(Fp8Layer, te_linear):
        """`nn.Linear` in fp8: weight [out, in]."""

        def __init__(self, replaced: nn.Module, switch: Switch) -> None:
            super().__init__(replaced, switch, *reversed(replaced.weight.shape))

        def plain_forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight, self.bias if self.use_bias else None)

    class Fp8Conv1D(Fp8Layer, te_linear):
        """transformers' `Conv1D` in fp8: weight [in, out], stored as it is and transposed for each product."""

        def __init__(self, replaced: nn.Module, switch: Switch) -> None:
            super().__init__(replaced, switch, *replaced.weight.shape)

        def plain_forward(self, x: Tensor) -> Tensor:
            return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], -1)

        def _get_weight_tensors(self) -> list[Tensor]:
            return [self.weight.t()]

    return {"Linear": Fp8Linear, "Conv1D": Fp8Conv1D}


class PlainLinear(nn.Module):
    """`nn.Linear`'s arithmetic in a class that Accelerate's fp8 conversion does not recognise, and so leaves tied, trained and in bf16."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        return F.linear(x, self.weight, self.bias)


class PlainLayerNorm(nn.Module):
    """`nn.LayerNorm`'s arithmetic, likewise."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalised over the last dimensions."""
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


def enter_around(blocks_owner: nn.Module, switch: Switch) -> None:
    """Puts one context of the recipe around the module that calls the blocks: the innermost that holds them all, so none of Accelerate's is inside."""
    open_contexts: list[contextlib.ExitStack] = []

    def before(module: nn.Module, _: Any) -> None:
        stack = contextlib.ExitStack()
        if switch.applies(module.training):
            stack.enter_context(switch.context())
        open_contexts.append(stack)

    def after(*_: Any) -> None:
        open_contexts.pop().close()

    blocks_owner.register_forward_pre_hook(before)
    blocks_owner.register_forward_hook(after, always_call=True)
