"""What this process's device and TransformerEngine can do about fp8: facts for `decide`, gathered until something is missing."""

import math
from dataclasses import replace

import torch
from torch import nn

from trainer.config.schema import PrecisionConfig
from trainer.precision import backend
from trainer.precision.decide import Facts, lacking, setup_command
from trainer.precision.layers import Switch, fp8_classes
from trainer.precision.recipes import Recipe, format_of, recipe_of
from trainer.text import one_line

WIDTH = 256
"""Width of the probe's layer, and number of tokens that go through it."""

LEAST_ERROR = 0.01
"""A relative error below it shows that nothing was quantised: bf16 gives 0.003, and e4m3 on normal data 0.037."""


def probe_device(device_type: str, wanted: PrecisionConfig | None = None) -> Facts:
    """The facts about this process's current device.

    wanted   the precision block whose recipe is tried; None where fp8 is not asked for, and nothing of it is looked at
    """
    facts = device_facts(device_type)
    if wanted is None:
        return facts
    facts = replace(facts, emulated=device_type == "cpu" and backend.is_emulated())
    recipe = recipe_of(wanted.recipe, facts.capability)
    if lacking(recipe, facts):
        return facts
    try:
        loaded = backend.load()
    except Exception as error:  # a broken installation raises ImportError, OSError, RuntimeError, AssertionError
        return replace(facts, problem=_import_problem(error))
    facts = replace(facts, backend=loaded.name, emulated=loaded.emulated)
    try:
        able, words = getattr(loaded.pytorch, recipe.predicate)(return_reason=True)
    except Exception as error:
        able, words = False, one_line(error)
    if not able:
        return replace(facts, problem=f"{loaded.name} says: {words.rstrip('.') or 'no'}")
    # Each rank probes for itself: it may be the only one that comes so far, and delayed scaling would wait for the others' amax.
    alone = {} if recipe.stateless else {"reduce_amax": False}
    made = backend.make_recipe(recipe, format_of(recipe, wanted.format), {**wanted.options, **alone})
    try:
        forward, worst = probe_errors(made, device_type)
    except Exception as failure:
        return replace(facts, problem=f"a small layer could not be computed with it ({one_line(failure)})")
    return replace(facts, problem=judge(forward, worst, recipe), probe_error=worst)


def device_facts(device_type: str) -> Facts:
    if device_type != "cuda":
        return Facts(device_type, has_bf16=True)
    index = torch.cuda.current_device()
    return Facts(
        device_type,
        has_bf16=torch.cuda.is_bf16_supported(including_emulation=False),
        gpu=torch.cuda.get_device_name(index),
        gpu_index=index,
        capability=torch.cuda.get_device_capability(index),
        cuda=_pair(torch.version.cuda),
    )


def _pair(version: str | None) -> tuple[int, int] | None:
    numbers = (version or "").split(".")
    return (int(numbers[0]), int(numbers[1])) if len(numbers) >= 2 else None


def _import_problem(error: BaseException) -> str:
    if backend.is_missing(error):
        return f"TransformerEngine is not installed ({setup_command()} installs it)"
    return f"TransformerEngine cannot be imported ({one_line(error)}); install it anew with {setup_command()}"


def judge(forward: float, worst: float, recipe: Recipe) -> str | None:
    """Why a probe's relative errors show that fp8 does not work, None when they are as they should be. NaN is not as it should be."""
    if forward < LEAST_ERROR:
        applied = f"{recipe.te_class} was not applied"
        return f"a small layer came within {forward:.2%} of fp32, closer than fp8 can: {applied}"
    if not worst <= recipe.worst_error:
        return f"a small layer was {worst:.2%} off fp32, and {recipe.title} should stay below {recipe.worst_error:.0%}"
    return None


def probe_errors(made: object, device_type: str) -> tuple[float, float]:
    """Relative errors of one layer [256, 256] in fp8 against fp32: of its output, and the worst of output and gradients.

    made   TransformerEngine's recipe; of delayed scaling without reduce_amax where there are other ranks

    The layer is of the class that a run has, and gets fp32, as a norm under autocast gives it.

    The random state is left as it was. Values of size one suit delayed scaling too, which knows no scale yet in its first step.
    """
    devices = [torch.cuda.current_device()] if device_type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        torch.manual_seed(0)
        x, weight, grad = (torch.randn(WIDTH, WIDTH, device=device_type) for _ in range(3))
        plain = nn.Linear(WIDTH, WIDTH, bias=False, device=device_type)
        with torch.no_grad():
            plain.weight.copy_(weight)
        layer = fp8_classes()["Linear"](plain, Switch(backend.load().pytorch.autocast, made))
        x.requires_grad_()
        with torch.autocast(device_type, torch.bfloat16):
            y = layer(x)
        y.backward(grad.to(y.dtype))
    pairs = ((y, x @ weight.t()), (x.grad, grad @ weight), (layer.weight.grad, grad.t() @ x))
    errors = [((ours.float() - right).norm() / right.norm()).item() for ours, right in pairs]
    worst = float("nan") if any(math.isnan(error) for error in errors) else max(errors)
    return errors[0], worst
