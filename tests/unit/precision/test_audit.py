"""Each silent fault of notes on Accelerate and TransformerEngine, planted, and found."""

import pytest
import torch
from torch import nn

from tests.messages import refuses, says
from tests.unit.model.tiny import tiny_model
from tests.unit.precision.test_convert import ALL_BLOCKS, CURRENT, converted_model, loss_and_gradients, make_switch
from trainer.config.schema import OptimizerConfig
from trainer.errors import PrecisionError
from trainer.model.flops import flops_per_token
from trainer.optim.build import build_optimizer
from trainer.precision.audit import census, check_prepared, check_ran, coverage, forget_what_ran
from trainer.precision.convert import Layer, convert, survey


class Prepared:
    """A model that was converted, with the census before and an optimizer on it: sound until something is planted."""

    def __init__(self, te, shape="gpt2"):
        self.model = tiny_model(shape)
        self.before = census(self.model)
        self.layers = survey(self.model, CURRENT, **ALL_BLOCKS)
        self.switch = make_switch(te)
        self.converted = convert(self.model, self.layers, self.switch)
        self.optimizer = build_optimizer(self.model, OptimizerConfig(name="adamw", lr=1e-3))

    def check(self, mixed_precision="fp8"):
        check_prepared(self.before, self.model, self.converted, mixed_precision, self.optimizer)

    def fails(self, *words, **changes):
        with refuses(PrecisionError, *words):
            self.check(**changes)


@pytest.mark.parametrize("shape", ["gpt2", "llama", "llama-tied"])
def test_a_sound_conversion_passes(stand_in, shape):
    Prepared(stand_in, shape).check()


def test_an_untied_head_is_found(stand_in):
    prepared = Prepared(stand_in)
    prepared.model.lm_head.weight = nn.Parameter(prepared.model.lm_head.weight.detach().clone())
    prepared.fails("tied", "1 parameters", "lm_head.weight")


def test_a_head_that_nobody_trains_is_found(stand_in):
    prepared = Prepared(stand_in, "llama")
    head = prepared.model.lm_head.weight
    for group in prepared.optimizer.param_groups:
        group["params"] = [p for p in group["params"] if p is not head]
    prepared.fails("1 parameters", "trained", "lm_head.weight")


def test_a_frozen_parameter_is_found(stand_in):
    prepared = Prepared(stand_in)
    prepared.model.transformer.h[0].mlp.c_fc.weight.requires_grad_(False)
    prepared.fails("1 parameters", "training", "transformer.h.0.mlp.c_fc.weight")


def test_a_parameter_in_another_type_is_found(stand_in):
    prepared = Prepared(stand_in)
    prepared.model.transformer.ln_f.weight.data = prepared.model.transformer.ln_f.weight.data.bfloat16()
    prepared.fails("1 parameters", "type", "transformer.ln_f.weight")


def test_an_optimizer_on_other_parameters_is_found(stand_in):
    prepared = Prepared(stand_in)
    prepared.optimizer.param_groups[0]["params"].append(nn.Parameter(torch.zeros(1)))
    prepared.fails("optimizer", "1 parameters")


def test_a_parameter_that_is_trained_twice_is_found(stand_in):
    prepared = Prepared(stand_in)
    prepared.optimizer.param_groups[0]["params"].append(prepared.optimizer.param_groups[0]["params"][0])
    prepared.fails("optimizer", "twice")


def test_nothing_converted_is_found(stand_in):
    prepared = Prepared(stand_in)
    prepared.converted.clear()
    prepared.fails("no layer")


def test_a_layer_that_was_replaced_afterwards_is_found(stand_in):
    prepared = Prepared(stand_in, "llama")
    mlp = prepared.model.model.layers[1].mlp
    lost = mlp.up_proj
    mlp.up_proj = nn.Linear(32, 48, bias=False)
    mlp.up_proj.weight = lost.weight
    prepared.fails("1 of 14 fp8 layers", "model.layers.1.mlp.up_proj")


def test_a_norm_that_got_a_bias_is_found(stand_in):
    prepared = Prepared(stand_in, "llama")
    prepared.model.model.norm.bias = nn.Parameter(torch.zeros(32))
    prepared.fails("1 parameters", "model.norm.bias", "checkpoint", "keys")


def test_extra_state_that_is_left_is_found(stand_in):
    prepared = Prepared(stand_in)
    prepared.model.transformer.ln_f.__class__ = stand_in.LayerNorm
    prepared.fails("checkpoint", "keys", "transformer.ln_f._extra_state")


def test_accelerates_quiet_fp16_is_found(stand_in):
    Prepared(stand_in).fails("Accelerate", "fp8", "fp16", mixed_precision="fp16")


def test_accelerates_own_conversion_is_found(fp8_accelerator, stand_in):
    prepared = Prepared(stand_in)
    prepared.model = tiny_model("gpt2")
    prepared.before = census(prepared.model)
    prepared.optimizer = build_optimizer(prepared.model, OptimizerConfig(name="adamw", lr=1e-3))
    fp8_accelerator.prepare(prepared.model, prepared.optimizer)
    prepared.converted.clear()
    prepared.fails("tied", "no layer")


def test_layers_that_ran_in_fp8_pass_and_are_watched_anew(stand_in, tokens):
    prepared = Prepared(stand_in)
    loss_and_gradients(prepared.model, tokens)
    check_ran(prepared.converted, "step 1")
    forget_what_ran(prepared.converted)
    with refuses(PrecisionError, "8 of 8 layers", "step 2"):
        check_ran(prepared.converted, "step 2")


def test_layers_without_a_context_as_under_fsdp2_are_found(stand_in, tokens):
    """Accelerate enters no context for a sharded model; around delayed scaling's layers nobody else would."""
    prepared = Prepared(stand_in)
    prepared.switch.around_model = True
    loss_and_gradients(prepared.model, tokens)
    with refuses(PrecisionError, "8 of 8 layers", "warm-up", "transformer.h.0.attn.c_attn"):
        check_ran(prepared.converted, "the warm-up")


def test_siblings_that_an_early_return_left_out_are_found(stand_in, tokens):
    prepared = Prepared(stand_in, "llama")
    idle = prepared.converted["model.layers.0.mlp.down_proj"]
    idle.switch = make_switch(stand_in, enabled=False)
    loss_and_gradients(prepared.model, tokens)
    with refuses(PrecisionError, "1 of 14 layers", "step 1", "model.layers.0.mlp.down_proj"):
        check_ran(prepared.converted, "step 1")


# The share


@pytest.mark.parametrize("shape", ["gpt2", "llama", "llama-tied"])
def test_coverage_counts_the_arithmetic_as_mfu_does(stand_in, shape):
    model, converted, _ = converted_model(stand_in, shape)
    flops = flops_per_token(model, 32)
    assert flops == flops_per_token(tiny_model(shape), 32)
    share = coverage(model, survey(tiny_model(shape), CURRENT, **ALL_BLOCKS), flops)
    weights = sum(layer.weight.numel() for layer in converted.values())
    assert share.num_layers == share.num_linear_layers == len(converted)
    assert share.block_fraction == 1.0
    assert share.matmul_fraction == 6.0 * weights / flops < 1.0


def test_coverage_of_one_block_of_two_is_half_of_the_blocks():
    model = tiny_model("llama")
    share = coverage(model, survey(model, CURRENT, first=1, last=0), flops_per_token(model, 32))
    assert share.block_fraction == 0.5
    says(share.words, "7 of 14 linear layers", "50.0%")


def test_coverage_of_forward_passes_alone_is_a_third():
    model = tiny_model("llama")
    layers, flops = survey(model, CURRENT, **ALL_BLOCKS), flops_per_token(model, 32)
    whole, forward = coverage(model, layers, flops), coverage(model, layers, flops, forward_only=True)
    assert (forward.block_fraction, forward.matmul_fraction) == pytest.approx((1 / 3, whole.matmul_fraction / 3))


def test_coverage_without_blocks_is_nothing():
    assert coverage(nn.Linear(2, 2), [Layer("a", "Linear", 2, 2, "other", "why not")], 1.0).block_fraction == 0.0
