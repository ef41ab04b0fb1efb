"""Layers that really compute in fp8: each recipe, GPT-2's transposed weights against plain ones, and the same bits every time."""

import pytest
import torch

from trainer.config.schema import PrecisionConfig
from trainer.precision import backend
from trainer.precision.decide import decide
from trainer.precision.layers import Switch, fp8_classes
from trainer.precision.probe import probe_device
from trainer.precision.recipes import RECIPES, format_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and this machine has none"),
]


@pytest.fixture(params=[name for name in RECIPES if name != "nvfp4"])
def switch(request):
    """The switch of one recipe; skipped where this GPU or its TransformerEngine cannot do it. nvfp4 rounds gradients at random, to other bits each time."""
    recipe = RECIPES[request.param]
    if problem := _problem(recipe.name):
        pytest.skip(problem)
    return Switch(backend.load().pytorch.autocast, backend.make_recipe(recipe, format_of(recipe, None), {}))


def _problem(name: str) -> str | None:
    wanted = PrecisionConfig(recipe=name)
    decision = decide("fp8", probe_device("cuda", wanted), wanted)
    return None if decision.mode == "fp8" else decision.reason


class Conv1D(torch.nn.Module):
    """The form of transformers' layer: weight [in, out]."""

    def __init__(self, linear):
        super().__init__()
        self.nf = linear.out_features
        self.weight = torch.nn.Parameter(linear.weight.detach().t().contiguous())
        self.bias = torch.nn.Parameter(linear.bias.detach().clone())


def passed(kind, replaced, switch, times=2):
    """Output and gradients [of input, weight, bias] of the last of so many passes, and whether it was in fp8."""
    layer = fp8_classes()[kind](replaced, switch)
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(4, 128, 256, device="cuda", generator=generator, requires_grad=True)
    grad = torch.randn(4, 128, 384, device="cuda", generator=generator)
    for _ in range(times):
        x.grad = layer.weight.grad = layer.bias.grad = None
        with torch.autocast("cuda", torch.bfloat16):
            y = layer(x)
        y.backward(grad.to(y.dtype))
    return [y.detach(), x.grad, layer.weight.grad, layer.bias.grad], layer.ran_in_fp8


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return torch.nn.Linear(256, 384).cuda()


def test_a_layer_computes_in_fp8_and_to_the_same_bits_every_time(switch, linear):
    first, ran = passed("Linear", linear, switch)
    again, _ = passed("Linear", linear, switch)
    assert ran and all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    with torch.no_grad():
        x = torch.randn(4, 128, 256, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
        wanted = torch.nn.functional.linear(x, linear.weight, linear.bias)
    error = ((first[0].float() - wanted).norm() / wanted.norm()).item()
    assert 0.01 < error < 0.4


def test_gpt2s_transposed_weights_give_the_bits_of_plain_ones(switch, linear):
    plain, _ = passed("Linear", linear, switch)
    transposed, ran = passed("Conv1D", Conv1D(linear), switch)
    assert ran and torch.equal(transposed[2], plain[2].t())
    for index in (0, 1, 3):
        assert torch.equal(transposed[index], plain[index])


def test_kept_fp8_weights_give_the_bits_of_fresh_ones(switch, linear):
    if switch.made.delayed():
        pytest.skip("delayed scaling keeps no fp8 weights")
    fresh, _ = passed("Linear", linear, switch)
    layer = fp8_classes()["Linear"](linear, switch)
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(4, 128, 256, device="cuda", generator=generator)
    for switch.first_micro_batch in (True, False):
        with torch.autocast("cuda", torch.bfloat16):
            y = layer(x)
    assert torch.equal(y, fresh[0])


def test_evaluation_is_bf16s_own_arithmetic(switch, linear):
    layer = fp8_classes()["Linear"](linear, switch).eval()
    x = torch.randn(7, 256, device="cuda")
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        assert torch.equal(layer(x), linear(x)) and not layer.ran_in_fp8
