import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from tests.messages import refuses, says
from tests.unit.model.families import family_model
from tests.unit.model.tiny import tiny_model
from trainer.config.schema import OptimizerConfig, PrecisionConfig
from trainer.errors import ConfigError, PrecisionError
from trainer.model.build import build_model
from trainer.model.flops import flops_per_token
from trainer.optim.build import build_optimizer
from trainer.optim.groups import check_groups
from trainer.precision import backend
from trainer.precision.audit import census, check_ran, coverage
from trainer.precision.convert import convert, find_blocks, hide, misfit, role_of, stacked_parameters, survey
from trainer.precision.layers import PlainLayerNorm, PlainLinear, Switch
from trainer.precision.recipes import RECIPES

CURRENT = RECIPES["current"]
SHAPES = ("gpt2", "gpt2-untied", "llama", "llama-tied")
ALL_BLOCKS = {"first": 0, "last": 0}


def make_switch(te, name="current", **changes):
    recipe = RECIPES[name]
    return Switch(
        te.autocast, backend.make_recipe(recipe, recipe.formats[0], {}), around_model=not recipe.stateless, **changes
    )


def converted_model(te, shape, *, name="current", ends=ALL_BLOCKS, **fields):
    model = tiny_model(shape, **fields)
    switch = make_switch(te, name)
    return model, convert(model, survey(model, RECIPES[name], **ends), switch), switch


def loss_and_gradients(model, tokens):
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(tokens, labels=tokens)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


# What is converted


@pytest.mark.parametrize(("shape", "number"), [("gpt2", 8), ("gpt2-untied", 8), ("llama", 14), ("llama-tied", 14)])
def test_every_linear_layer_of_the_blocks_is_converted_and_nothing_else(stand_in, shape, number):
    model, converted, _ = converted_model(stand_in, shape)
    assert len(converted) == number
    assert {name for name, m in model.named_modules() if isinstance(m, stand_in.Linear)} == converted.keys()
    assert all(".h." in name or ".layers." in name for name in converted)
    assert type(model.get_input_embeddings()) is nn.Embedding


@pytest.mark.parametrize("shape", SHAPES)
def test_parameters_keys_types_and_random_state_stay_what_they_were(stand_in, shape):
    model = tiny_model(shape)
    before, state = census(model), torch.get_rng_state()
    convert(model, survey(model, CURRENT, **ALL_BLOCKS), make_switch(stand_in))
    now = census(model)
    assert now.keys == before.keys == tuple(tiny_model(shape).state_dict())
    assert now.facts == before.facts
    assert now.is_tied == before.is_tied
    assert list(now.parameters) == list(before.parameters)
    assert all(now.parameters[name] is p for name, p in before.parameters.items())
    assert torch.equal(state, torch.get_rng_state())


def test_first_and_last_blocks_stay_in_bf16():
    layers = survey(tiny_model("llama", num_hidden_layers=4), CURRENT, first=1, last=2)
    inside = {layer.name.split(".")[2] for layer in layers if layer.kept is None}
    assert inside == {"1"}
    assert {layer.kept for layer in layers if layer.kept} == {"in one of the first or last blocks"}


def test_a_layer_of_odd_size_stays_in_bf16_and_the_ones_after_it_do_not():
    layers = {layer.name: layer for layer in survey(tiny_model("llama", intermediate_size=40), CURRENT, **ALL_BLOCKS)}
    kept = {name.rsplit(".", 1)[-1] for name, layer in layers.items() if layer.kept}
    assert kept == {"gate_proj", "up_proj", "down_proj"}
    says(layers["model.layers.0.mlp.up_proj"].kept, 32, 40, "multiples of 16")
    assert layers["model.layers.1.self_attn.o_proj"].kept is None


@pytest.mark.parametrize("shared", ["a block", "a layer of two blocks", "two names of a layer", "a weight"])
def test_a_weight_that_is_used_in_more_than_one_place_stays_in_bf16_and_is_not_counted_twice(stand_in, tokens, shared):
    model = tiny_model("llama", num_hidden_layers=3)
    _, first, second = model.model.layers
    if shared == "a block":
        model.model.layers[2] = first
    elif shared == "a layer of two blocks":
        second.mlp.up_proj = first.mlp.up_proj
    elif shared == "two names of a layer":
        first.mlp.gate_proj = first.mlp.up_proj
    else:
        second.mlp.up_proj.weight = first.mlp.up_proj.weight
    layers = survey(model, CURRENT, **ALL_BLOCKS)
    kept = {layer.name for layer in layers if layer.kept == "its weight is used in more than one place"}
    assert any(".mlp." in name for name in kept)
    assert any("q_proj" in name for name in kept) is (shared == "a block")
    before, converted = census(model), convert(model, layers, make_switch(stand_in))
    assert not kept & converted.keys()
    assert census(model).keys == before.keys
    assert coverage(model, layers, flops_per_token(model, 16)).block_fraction < 1.0
    assert loss_and_gradients(model, tokens)[0].isfinite()


def test_a_router_stays_in_bf16():
    model = tiny_model("llama")
    model.model.layers[0].mlp.gate = nn.Linear(32, 16)
    kept = {layer.name: layer.kept for layer in survey(model, CURRENT, **ALL_BLOCKS) if layer.kept}
    assert kept == {"model.layers.0.mlp.gate": "a router"}


@pytest.mark.parametrize(
    ("shape", "roles"),
    [
        ("gpt2", {"qkv": 1, "attention_out": 1, "mlp_up": 1, "mlp_down": 1}),
        ("llama", {"qkv": 3, "attention_out": 1, "mlp_up": 2, "mlp_down": 1}),
    ],
)
def test_each_layer_of_a_block_has_its_role(shape, roles):
    layers = [layer for layer in survey(tiny_model(shape), CURRENT, **ALL_BLOCKS) if ".0." in layer.name]
    found = [layer.role for layer in layers]
    assert {role: found.count(role) for role in found} == roles


@pytest.mark.parametrize(
    ("name", "widths", "role"),
    [
        ("attention.query_key_value", (32, 96), "qkv"),
        ("attention.dense", (32, 32), "attention_out"),
        ("mlp.dense_h_to_4h", (32, 128), "mlp_up"),
        ("mlp.dense_4h_to_h", (128, 32), "mlp_down"),
        ("mixer.proj", (32, 32), "other"),
    ],
)
def test_roles_come_from_names_and_shapes(name, widths, role):
    assert role_of(name, *widths) == role


def test_blocks_are_the_list_as_long_as_the_config_says_or_else_the_longest():
    assert find_blocks(tiny_model("gpt2"))[0] == "transformer.h"
    plain = nn.Module()
    plain.few, plain.many = nn.ModuleList([nn.Linear(2, 2)]), nn.ModuleList([nn.Linear(2, 2)] * 3)
    assert find_blocks(plain)[0] == "many"
    assert len(find_blocks(nn.Linear(2, 2))[1]) == 0


# Why nothing can be


def fits(model, *, recipe="current", micro_batch=2, sequence_length=32, **wanted):
    settings = PrecisionConfig(**{"bf16_first_blocks": 0, "bf16_last_blocks": 0, **wanted})
    return misfit(model, RECIPES[recipe], settings, micro_batch=micro_batch, sequence_length=sequence_length)


def test_a_model_and_a_batch_that_fit_have_no_misfit():
    assert fits(tiny_model("llama")) is None
    assert fits(tiny_model("gpt2"), recipe="mxfp8") is None


def test_a_model_none_of_whose_layers_fits_is_told_with_a_layer():
    says(
        fits(tiny_model("gpt2"), recipe="block"),
        "precision.recipe",
        "'block'",
        "transformer.h.0.attn.c_attn",
        "32 and 96",
    )


def test_edges_that_leave_no_block_are_told_by_their_settings():
    assert fits(tiny_model("llama"), bf16_first_blocks=1, bf16_last_blocks=1).startswith(
        "precision.bf16_first_blocks 1 and precision.bf16_last_blocks 1"
    )


def test_a_micro_batch_whose_tokens_do_not_fit_is_told_by_its_settings():
    assert "micro_batch 1 x sequence_length 24 = 24 tokens" in fits(
        tiny_model("llama"), micro_batch=1, sequence_length=24
    )


def test_a_model_without_linear_layers_in_its_blocks_is_told():
    model = tiny_model("llama")
    model.model.layers = nn.ModuleList([nn.Identity(), nn.Identity()])
    says(fits(model), "no linear layers")


class OwnLinear(nn.Linear):
    """A layer with arithmetic of its own."""


class OwnNorm(nn.LayerNorm):
    """Likewise."""


@pytest.mark.parametrize("layer", [OwnLinear(32, 32), OwnNorm(32)])
def test_a_layer_that_accelerate_would_replace_against_its_meaning_is_told_and_refused(stand_in, layer):
    model = tiny_model("llama")
    model.model.layers[0].odd = layer
    says(fits(model), "model.layers.0.odd", type(layer).__name__)
    with refuses(PrecisionError, "Accelerate", "fp8"):
        convert(model, [], make_switch(stand_in))


def test_the_shapes_are_known_without_building_the_weights():
    from tests.unit.model.tiny import tiny_config

    model = build_model(tiny_config("gpt2", vocab_size=1), vocab_size=1, seed=0, device="meta")
    assert fits(model) is None


# What Accelerate finds


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "vocab_size", [257, 320]
)  # padded to 320 both: a multiple of 16, so the head would be converted
def test_prepare_leaves_every_parameter_and_the_tie_alone(fp8_accelerator, stand_in, shape, vocab_size):
    model, converted, _ = converted_model(stand_in, shape, vocab_size=vocab_size)
    before = census(model)
    optimizer = build_optimizer(model, OptimizerConfig(name="adamw", lr=1e-3))
    prepared, wrapped = fp8_accelerator.prepare(model, optimizer)
    now = census(prepared)
    assert all(now.parameters[name] is p for name, p in before.parameters.items())
    assert now.keys == before.keys
    assert now.is_tied == before.is_tied
    check_groups(model, wrapped)
    assert all(model.get_submodule(name) is layer for name, layer in converted.items())


def test_without_hiding_the_head_accelerate_unties_and_loses_it(fp8_accelerator, stand_in):
    """What this conversion is for: should it pass one day, Accelerate has been mended."""
    model = tiny_model("gpt2")
    optimizer = build_optimizer(model, OptimizerConfig(name="adamw", lr=1e-3))
    fp8_accelerator.prepare(model, optimizer)
    assert model.lm_head.weight is not model.transformer.wte.weight
    with refuses(ConfigError, "parameters", "optimizer group"):
        check_groups(model, optimizer)
    assert any(key.endswith("_extra_state") for key in model.state_dict())


def test_hidden_layers_compute_what_they_did():
    linear, plain, norm, bare = (
        nn.Linear(6, 3),
        nn.Linear(6, 3, bias=False),
        nn.LayerNorm(6, bias=False),
        nn.LayerNorm(6, elementwise_affine=False),
    )
    model, x = nn.ModuleList([linear, plain, norm, bare]), torch.randn(2, 6)
    before, keys = [layer(x) for layer in model], list(model.state_dict())
    hide(model)
    assert [type(layer) for layer in model] == [PlainLinear, PlainLinear, PlainLayerNorm, PlainLayerNorm]
    assert all(torch.equal(layer(x), y) for layer, y in zip(model, before, strict=True))
    assert list(model.state_dict()) == keys
    assert torch.equal(linear(x), F.linear(x, linear.weight, linear.bias))


# What they compute


@pytest.mark.parametrize("shape", SHAPES)
def test_evaluation_is_bit_for_bit_that_of_a_bf16_run(stand_in, tokens, shape):
    model, _, _ = converted_model(stand_in, shape)
    plain = tiny_model(shape)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.eval()(tokens, labels=tokens), plain.eval()(tokens, labels=tokens))
        assert torch.equal(model(tokens).logits, plain(tokens).logits)
    assert not stand_in.RAN


@pytest.mark.parametrize("shape", SHAPES)
def test_a_run_that_went_back_to_bf16_trains_bit_for_bit_as_a_bf16_run(stand_in, tokens, shape):
    model, _, switch = converted_model(stand_in, shape)
    switch.enabled = False
    loss, gradients = loss_and_gradients(model, tokens)
    reference, expected = loss_and_gradients(tiny_model(shape), tokens)
    assert torch.equal(loss, reference)
    assert all(torch.equal(gradients[name], g) for name, g in expected.items())
    assert not stand_in.RAN


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", RECIPES)
def test_training_computes_every_converted_layer_in_fp8_close_to_bf16(stand_in, tokens, shape, name):
    width = 128 if name == "block" else 32
    fields = {"hidden_size": width, "intermediate_size": 2 * width} if shape.startswith("llama") else {"n_embd": width}
    model, converted, _ = converted_model(stand_in, shape, name=name, **fields)
    if name == "delayed":
        loss_and_gradients(model, tokens)  # without scales from a step before, gradients this small are zero in e5m2
    loss, gradients = loss_and_gradients(model, tokens)
    reference, expected = loss_and_gradients(tiny_model(shape, **fields), tokens)
    assert {ran.layer for ran in stand_in.RAN} == set(converted.values())
    assert all(ran.in_fp8 for ran in stand_in.RAN)
    assert all(layer.ran_in_fp8 for layer in converted.values())
    assert not torch.equal(loss, reference)
    assert torch.allclose(loss, reference, rtol=0.02)
    for key, gradient in expected.items():
        assert gradients[key].shape == gradient.shape
        assert gradients[key].dtype == gradient.dtype
        assert (gradients[key] - gradient).norm() <= 0.3 * gradient.norm() + 1e-6, key


def test_under_accelerates_own_context_ours_is_the_recipe_that_counts(fp8_accelerator, stand_in, tokens):
    model, converted, _ = converted_model(stand_in, "llama")
    prepared, _ = fp8_accelerator.prepare(model, build_optimizer(model, OptimizerConfig(name="adamw", lr=1e-3)))
    fp8_accelerator.backward(prepared(tokens, labels=tokens))
    assert {ran.recipe for ran in stand_in.RAN} == {"Float8CurrentScaling"}
    assert stand_in.STATE.num_reductions == 0


def test_activation_checkpointing_recomputes_in_fp8(stand_in, tokens):
    reference, _, _ = converted_model(stand_in, "gpt2")
    expected = loss_and_gradients(reference, tokens)
    stand_in.RAN.clear()
    model, converted, _ = converted_model(stand_in, "gpt2")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    loss, gradients = loss_and_gradients(model, tokens)
    assert len(stand_in.RAN) == 2 * len(converted)
    assert all(ran.in_fp8 for ran in stand_in.RAN)
    assert torch.equal(loss, expected[0])
    assert all(torch.equal(gradients[name], g) for name, g in expected[1].items())


@pytest.fixture
def group_of_one():
    """A group of processes with this one in it, and none afterwards."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("shape", ["gpt2", "llama"])
def test_sharded_blocks_as_under_fsdp2_compute_in_fp8_without_any_context_of_accelerates(
    stand_in, tokens, group_of_one, shape
):
    model, converted, _ = converted_model(stand_in, shape)
    for module in (*find_blocks(model)[1], model):
        fully_shard(module, mesh=group_of_one, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    model(tokens, labels=tokens).backward()
    assert len(stand_in.RAN) == len(converted)
    check_ran(converted, "the pass")
    assert all(isinstance(p.grad, DTensor) and p.grad.full_tensor().isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("shape", ["gpt2", "llama-tied"])
def test_keeping_fp8_weights_over_micro_batches_changes_no_bit_and_follows_an_update(stand_in, tokens, shape):
    model, converted, switch = converted_model(stand_in, shape)
    other = tokens.flip(0)

    def two_micro_batches(*flags):
        results = []
        for flag, batch in zip(flags, (tokens, other), strict=True):
            switch.first_micro_batch = flag
            results.append(loss_and_gradients(model, batch))
        return results

    for _ in range(2):
        anew = two_micro_batches(None, None)
        stand_in.RAN.clear()
        kept = two_micro_batches(True, False)
        assert [ran.weight_rounded for ran in stand_in.RAN] == [True] * len(converted) + [False] * len(converted)
        for (loss, gradients), (reference, expected) in zip(kept, anew, strict=True):
            assert torch.equal(loss, reference)
            assert all(torch.equal(gradients[name], g) for name, g in expected.items())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.3)


@pytest.mark.parametrize("shape", ["gpt2", "llama"])
def test_delayed_scaling_has_one_context_around_the_blocks_and_one_update_for_each_pass(
    fp8_accelerator, stand_in, tokens, shape
):
    model, converted, _ = converted_model(stand_in, shape, name="delayed")
    prepared, _ = fp8_accelerator.prepare(model, build_optimizer(model, OptimizerConfig(name="adamw", lr=1e-3)))
    for number in (1, 2):
        stand_in.RAN.clear()
        fp8_accelerator.backward(prepared(tokens, labels=tokens))
        assert stand_in.STATE.num_reductions == number
        assert len(stand_in.RAN) == len(converted)
        assert all(ran.in_fp8 and ran.recipe == "DelayedScaling" for ran in stand_in.RAN)
    layer = next(iter(converted.values()))
    assert layer.fp8_meta["scaling_fwd"].scale[0] > 1.0
    prepared.eval()(tokens, labels=tokens)
    assert stand_in.STATE.num_reductions == 2, "evaluation is not in fp8"


def test_a_failing_forward_pass_leaves_no_context_open(stand_in, tokens):
    model, converted, _ = converted_model(stand_in, "gpt2", name="delayed")
    layer = next(iter(converted.values()))
    handle = layer.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("stopped")))
    with pytest.raises(RuntimeError, match="stopped"):
        model(tokens, labels=tokens)
    handle.remove()
    assert stand_in.STATE.depth == 0
    assert not stand_in.STATE.enabled


def test_an_fp8_layer_says_what_a_kind_of_layer_must_know():
    from trainer.precision.layers import Fp8Layer

    with pytest.raises(NotImplementedError):
        Fp8Layer.plain_forward(None, torch.zeros(1))


@pytest.mark.parametrize("shape", SHAPES)
def test_weights_go_from_fp8_to_bf16_and_back_by_strict_loading(stand_in, shape):
    model, _, _ = converted_model(stand_in, shape)
    plain = tiny_model(shape, seed=2)
    plain.load_state_dict(model.state_dict(), strict=True)
    model.load_state_dict(plain.state_dict(), strict=True)
    assert not [key for key in model.state_dict() if "extra_state" in key]
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in model.state_dict().items())


def test_a_layer_whose_block_only_uses_its_weight_stays_and_stacked_experts_are_named(stand_in):
    mamba = family_model("mamba", hidden_size=256, num_hidden_layers=1)
    layers = {layer.name.rpartition(".")[2]: layer.kept for layer in survey(mamba, CURRENT, **ALL_BLOCKS)}
    assert layers["in_proj"] is None
    says(layers["dt_proj"], "weight")
    assert stacked_parameters(mamba) == []
    mixtral = family_model("mixtral", num_hidden_layers=1)
    assert [name.rpartition(".")[2] for name in stacked_parameters(mixtral)] == ["gate_up_proj", "down_proj"]


def test_of_experts_the_ones_that_a_token_visits_count_for_the_share_in_fp8(stand_in):
    model = family_model("mixtral", num_hidden_layers=1)
    layers = survey(model, CURRENT, **ALL_BLOCKS)
    attention, router, experts = 2 * 32 * 32 + 2 * 16 * 32, 4 * 32, 2 * 3 * 48 * 32
    share = coverage(model, layers, flops_per_token(model, 32)).block_fraction
    assert share == pytest.approx(attention / (attention + router + experts))
