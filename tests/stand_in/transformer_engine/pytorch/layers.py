"""Linear layers whose three products are of rounded operands, as TransformerEngine's are."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from transformer_engine.common.recipe import DelayedScaling, Format, MXFP8BlockScaling, NVFP4BlockScaling, Recipe
from transformer_engine.pytorch.contexts import STATE, Scales, reduce_and_update


class Pass(NamedTuple):
    """One forward pass of a linear layer."""

    layer: nn.Module
    in_fp8: bool
    recipe: str
    first_micro_batch: bool | None
    weight_rounded: bool


RAN: list[Pass] = []


def rounded(tensor: Tensor, largest: float, scale: Tensor | None = None) -> Tensor:
    """A tensor as fp8 holds it, in fp32: scaled so that its largest value just fits, cast, scaled back."""
    values = tensor.float()
    if scale is None:
        amax = values.abs().max()
        scale = torch.where(amax > 0, largest / amax, 1.0)
    kind = torch.float8_e4m3fn if largest == 448.0 else torch.float8_e5m2
    return (values * scale).clamp(-largest, largest).to(kind).float() / scale


class _Call(NamedTuple):
    """What the products of one forward pass and its backward pass go by."""

    dtype: torch.dtype
    """Of what comes out: autocast's."""
    forward: Scales | None
    backward: Scales | None
    backward_largest: float
    override: str | None
    """The recipe's backward_override: the backward pass is not in fp8 then."""
    updates: bool
    """Whether this layer's backward pass updates the scales of all gradients."""


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, weight_in_fp8, call):
        in_fp8 = rounded(
            x, 448.0, call.forward and call.forward.scale[0]
        )  # of x as it came: nothing is cast before it is rounded
        ctx.save_for_backward(*((x, weight) if call.override == "high_precision" else (in_fp8, weight_in_fp8)))
        ctx.call, ctx.has_bias = call, bias is not None
        y = in_fp8.to(call.dtype) @ weight_in_fp8.to(call.dtype).t()
        return y if bias is None else y + bias.to(call.dtype)

    @staticmethod
    def backward(ctx, grad):
        (x, weight), call = ctx.saved_tensors, ctx.call
        if call.override:
            x, weight, rounded_grad = x.to(call.dtype).float(), weight.to(call.dtype).float(), grad.float()
        else:
            rounded_grad = rounded(grad, call.backward_largest, call.backward and call.backward.scale[0])
        if call.backward is not None:
            call.backward.amax_history[0, 0] = grad.abs().max()
        rows, flat = rounded_grad.flatten(0, -2), x.flatten(0, -2)
        bias = grad.float().flatten(0, -2).sum(0).to(call.dtype) if ctx.has_bias else None
        gradients = (rounded_grad @ weight).to(call.dtype), (rows.t() @ flat).to(call.dtype), bias, None, None
        if call.updates:
            reduce_and_update(forward=False)
        return gradients


class Linear(nn.Module):
    def __init__(self, in_features, out_features, bias=True, params_dtype=None, device="cuda", **_):
        super().__init__()
        self.in_features, self.out_features, self.use_bias = in_features, out_features, bias
        self.fp8, self.fp8_meta, self._fp8_workspaces = False, {}, {}
        device = "cpu" if device == "cuda" else device
        self.weight = nn.Parameter(torch.empty(out_features, in_features, dtype=params_dtype, device=device))
        if bias:
            self.bias = nn.Parameter(torch.zeros(out_features, dtype=params_dtype, device=device))
        else:
            self.bias = torch.Tensor()
        if device != "meta":
            nn.init.normal_(self.weight, std=0.023)

    def get_extra_state(self) -> Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        pass

    def _get_weight_tensors(self) -> list[Tensor]:
        return [self.weight]

    def forward(self, x: Tensor, is_first_microbatch: bool | None = None) -> Tensor:
        (weight,) = self._get_weight_tensors()
        bias = self.bias if self.use_bias else None
        self.fp8, recipe = STATE.enabled, STATE.recipe
        workspace = self._fp8_workspaces.get("weight") if is_first_microbatch is not None else None
        is_new = workspace is None or is_first_microbatch is not False
        RAN.append(Pass(self, self.fp8, type(recipe).__name__, is_first_microbatch, self.fp8 and is_new))
        dtype = self._activation_dtype(x)
        if not self.fp8:
            return nn.functional.linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
        self._check_operands(recipe, x, weight)
        forward, backward = self._scales(recipe, x, weight) if isinstance(recipe, DelayedScaling) else (None, None)
        if is_new:
            workspace = rounded(weight.detach(), 448.0, forward and forward.scale[1])
        if is_first_microbatch is not None:
            self._fp8_workspaces["weight"] = workspace
        largest = (
            Format.E4M3.value.max_bwd
            if isinstance(recipe, NVFP4BlockScaling)
            else float(recipe.fp8_format.value.max_bwd)
        )
        override = getattr(recipe, "backward_override", None)
        call = _Call(
            dtype,
            forward,
            backward,
            largest,
            override,
            STATE.take_first() and torch.is_grad_enabled() and override is None,
        )
        with torch.autocast(x.device.type, enabled=False):
            return _Product.apply(x, weight, bias, workspace, call)

    def _activation_dtype(self, x: Tensor) -> torch.dtype:
        if torch.is_autocast_enabled(x.device.type):
            return torch.get_autocast_dtype(x.device.type)
        if x.dtype != self.weight.dtype:
            raise TypeError(
                f"Data types for parameters must match when outside of autocasted region. Found input dtype: {x.dtype}"
            )
        return x.dtype

    def _check_operands(self, recipe: Recipe, x: Tensor, weight: Tensor) -> None:
        rows, columns = (32, 32) if isinstance(recipe, MXFP8BlockScaling) else (8, 16)
        for tensor in (x, weight):
            if math.prod(tensor.shape[:-1]) % rows or tensor.shape[-1] % columns:
                raise ValueError(f"FP8 execution requires ... but got tensor with dims={list(tensor.shape)}")
        if isinstance(recipe, NVFP4BlockScaling) and not recipe.disable_rht and x.dtype != torch.bfloat16:
            raise RuntimeError("RHT is only supported for bfloat16 input")

    def _scales(self, recipe: DelayedScaling, x: Tensor, weight: Tensor) -> tuple[Scales, Scales]:
        if "scaling_fwd" not in self.fp8_meta:
            self.fp8_meta.update(scaling_fwd=Scales(recipe, forward=True), scaling_bwd=Scales(recipe, forward=False))
        forward = self.fp8_meta["scaling_fwd"]
        forward.amax_history[0, :2] = torch.stack([x.detach().abs().max().float(), weight.detach().abs().max().float()])
        return forward, self.fp8_meta["scaling_bwd"]


class LayerNorm(nn.LayerNorm):
    """With a bias whether wanted or not, and with extra state, as TransformerEngine's has."""

    def __init__(self, normalized_shape, eps=1e-5, params_dtype=None, **_):
        super().__init__(normalized_shape, eps=eps, dtype=params_dtype)

    def get_extra_state(self) -> Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        pass


class TransformerLayer(nn.Module):
    """Accelerate asks for its name."""
