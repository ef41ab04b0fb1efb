"""Linear layers whose three products are of rounded operands, as TransformerEngine's are."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformer_engine.common.recipe import DelayedScaling, Format, NVFP4BlockScaling
from transformer_engine.pytorch.contexts import STATE, Scales


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


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, weight_in_fp8, scales, backward_largest):
        in_fp8 = rounded(x, 448.0, scales and scales.scale[0])
        ctx.save_for_backward(in_fp8, weight_in_fp8)
        ctx.scales, ctx.backward_largest, ctx.has_bias = scales, backward_largest, bias is not None
        y = in_fp8.to(x.dtype) @ weight_in_fp8.to(x.dtype).t()
        return y if bias is None else y + bias.to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        if ctx.scales is not None:
            ctx.scales.amax_history[0, 2] = grad.abs().max()
        in_fp8 = rounded(grad, ctx.backward_largest, ctx.scales and ctx.scales.scale[2])
        rows, flat = in_fp8.flatten(0, -2), x.flatten(0, -2)
        bias = grad.float().flatten(0, -2).sum(0) if ctx.has_bias else None
        return (in_fp8 @ weight).to(grad.dtype), rows.t() @ flat, bias, None, None, None


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
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        if not self.fp8:
            return nn.functional.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
        for tensor in (x, weight):
            if math.prod(tensor.shape[:-1]) % 8 or tensor.shape[-1] % 16:
                raise ValueError(f"FP8 execution requires ... but got tensor with dims={list(tensor.shape)}")
        scales = self._scales(recipe, x, weight) if isinstance(recipe, DelayedScaling) else None
        if is_new:
            workspace = rounded(weight.detach(), 448.0, scales and scales.scale[1])
        if is_first_microbatch is not None:
            self._fp8_workspaces["weight"] = workspace
        largest = Format.E4M3.value.max_bwd if isinstance(recipe, NVFP4BlockScaling) else float(recipe.fp8_format.value.max_bwd)
        with torch.autocast(x.device.type, enabled=False):
            return _Product.apply(x, weight, bias, workspace, scales, largest)

    def _scales(self, recipe: DelayedScaling, x: Tensor, weight: Tensor) -> Scales:
        if "scaling_fwd" not in self.fp8_meta:
            self.fp8_meta["scaling_fwd"] = Scales(recipe)
        scales = self.fp8_meta["scaling_fwd"]
        scales.amax_history[0, :2] = torch.stack([x.detach().abs().max().float(), weight.detach().abs().max().float()])
        return scales


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
