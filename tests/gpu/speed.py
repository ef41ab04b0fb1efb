"""Part `speed`: linear layers of a block alone, and whole steps, at four widths: bf16, compiled bf16 and each recipe, in turn.

All ways share the same weights and, in whole steps, the same optimizer: a copy of the model that holds the same parameters is converted as the
trainer converts it. Each round times every way once, by CUDA events; what is told are medians, and the median over the rounds of the ratio
to bf16 in the same round. Micro-batches are not accumulated, so nothing is gained by keeping fp8 weights.

Delayed scaling comes last, in sessions with bf16 of its own: from then on TransformerEngine updates its layers whenever any context ends, and
would slow the other recipes down.
"""

import copy
import functools
import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.gpu.record import Record
from tests.gpu.runs import Scene
from trainer.config.schema import PrecisionConfig
from trainer.gpus import peak_flops
from trainer.model.build import build_model
from trainer.model.flops import flops_per_token
from trainer.model.resolve import resolve
from trainer.precision import backend
from trainer.precision.convert import convert, find_blocks, misfit, survey
from trainer.precision.layers import Switch
from trainer.precision.recipes import Recipe, format_of
from trainer.text import one_line

SHAPES = {768: (12, 16), 1600: (24, 8), 2048: (16, 8), 4096: (6, 8)}
"""Width -> blocks and sequences of a micro-batch; 4096 has fewer blocks than a model of that width would, whose moments do not fit on one GPU."""

SEQUENCE_LENGTH, VOCABULARY = 1024, 50257
BF16, COMPILED = "bf16", "bf16 compiled"
ALL_BLOCKS = PrecisionConfig(bf16_first_blocks=0, bf16_last_blocks=0)

Way = Callable[[], None]


def measure(scene: Scene, record: Record) -> None:
    """Times everything. A figure has no bar, but every way must be timed, or be a recipe that says which width does not fit it."""
    torch._dynamo.config.recompile_limit = (
        64  # as trainer/launch.py sets it: the eighth variant of a block would run uncompiled
    )
    recipes = scene.recipes()
    for session in (
        [recipe for recipe in recipes if recipe.stateless],
        [recipe for recipe in recipes if not recipe.stateless],
    ):
        for width in scene.sized(tuple(SHAPES), (192,)) if session else ():
            for kind, time_all in (("linears", time_linears), ("step", time_steps)):
                name = f"{kind} {width} {'+'.join(recipe.name for recipe in session)}"
                if found := record.piece(name, functools.partial(time_all, scene, width, session)):
                    _tell(record, name, found["ways"])
                _free(scene)


def _tell(record: Record, name: str, ways: dict[str, dict[str, Any]]) -> None:
    for way, figures in ways.items():
        if way != BF16:
            over = [
                f"{figures[key]:.2f} times {reference}"
                for reference, key in ((BF16, "over_bf16"), (COMPILED, "over_compiled"))
                if key in figures
            ]
            told = (
                f"n/a: {figures['not_applicable']}"
                if "not_applicable" in figures
                else figures.get("failed") or ", ".join(over)
            )
            record.check(
                f"{name}: {way}",
                told,
                "timed, or of a width that the recipe does not take",
                held="failed" not in figures,
            )


def _free(scene: Scene) -> None:
    """Gives back what the last models held; modules refer to each other in circles, and compiled code to modules."""
    torch._dynamo.reset()
    gc.collect()
    if not scene.emulated:
        torch.cuda.empty_cache()


# Linear layers alone


class Linears(nn.Module):
    """The four linear layers of a block one after the other, and nothing between them: [tokens, width] -> [tokens, 3 width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        shapes = ((width, width), (width, 4 * width), (4 * width, width), (width, 3 * width))
        self.blocks = nn.ModuleList(
            [nn.Sequential(*(nn.Linear(width_in, width_out) for width_in, width_out in shapes))]
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks[0](x)


def time_linears(scene: Scene, width: int, recipes: list[Recipe]) -> dict[str, Any]:
    """Forward and backward of the four layers."""
    tokens = scene.sized(16384, 128)
    torch.manual_seed(0)
    with torch.device(scene.device_type):
        model = Linears(width)
        x = torch.randn(tokens, width, requires_grad=True)
        grad = torch.randn(tokens, 3 * width, dtype=torch.bfloat16)

    def pass_of(variant: nn.Module) -> Way:
        def run() -> None:
            x.grad = None
            model.zero_grad()
            with torch.autocast(scene.device_type, torch.bfloat16):
                y = variant(x)
            y.backward(grad)

        return run

    variants = variants_of(scene, model, recipes, ALL_BLOCKS, micro_batch=tokens, sequence_length=1)
    flops = 6.0 * sum(p.numel() for p in model.parameters() if p.ndim == 2) * tokens
    ways = {name: way if isinstance(way, str) else pass_of(way) for name, way in variants.items()}
    return {"tokens": tokens, "ways": time_in_turn(scene, ways, flops)}


# Whole steps


def time_steps(scene: Scene, width: int, recipes: list[Recipe]) -> dict[str, Any]:
    """Forward, backward, clipping and AdamW of a GPT-2 with its first and last block in bf16, as is the default."""
    blocks, micro_batch = scene.sized(SHAPES.get(width), (3, 2))
    sequence_length, vocabulary = scene.sized((SEQUENCE_LENGTH, VOCABULARY), (64, 257))
    drops = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    fields = {"model_type": "gpt2", "n_layer": blocks, "n_embd": width, "n_head": width // 64, **drops}
    config = resolve(None, fields, vocab_size=vocabulary, sequence_length=sequence_length, eot_id=None)
    model = build_model(config, vocab_size=vocabulary, seed=0, device=torch.device(scene.device_type))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    tokens = torch.randint(vocabulary, (micro_batch, sequence_length), device=scene.device_type)

    def step_of(variant: nn.Module) -> Way:
        def run() -> None:
            with torch.autocast(scene.device_type, torch.bfloat16):
                loss = variant(tokens, labels=tokens)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        return run

    variants = variants_of(
        scene, model, recipes, PrecisionConfig(), micro_batch=micro_batch, sequence_length=sequence_length
    )
    flops = flops_per_token(model, sequence_length) * tokens.numel()
    ways = {name: way if isinstance(way, str) else step_of(way) for name, way in variants.items()}
    parameters = sum(p.numel() for p in model.parameters())
    return {
        "blocks": blocks,
        "tokens": tokens.numel(),
        "parameters": parameters,
        "ways": time_in_turn(scene, ways, flops),
    }


def variants_of(
    scene: Scene,
    model: nn.Module,
    recipes: list[Recipe],
    wanted: PrecisionConfig,
    *,
    micro_batch: int,
    sequence_length: int,
) -> dict[str, nn.Module | str]:
    """The model in bf16, compiled, and in each recipe, around the same parameters; or why a recipe does not fit."""
    variants: dict[str, nn.Module | str] = {BF16: model, COMPILED: _sharing(model)}
    for block in find_blocks(variants[COMPILED])[1]:
        block.compile(backend=scene.sized("inductor", "eager"))
    for recipe in recipes:
        why = misfit(model, recipe, wanted, micro_batch=micro_batch, sequence_length=sequence_length)
        if why:
            variants[recipe.name] = why
            continue
        if not recipe.stateless and not scene.emulated:
            _forget_delayed_layers()
        variants[recipe.name] = variant = _sharing(model)
        made = backend.make_recipe(recipe, format_of(recipe, None), {})
        switch = Switch(backend.load().pytorch.autocast, made, around_model=not recipe.stateless)
        convert(variant, survey(variant, recipe, first=wanted.bf16_first_blocks, last=wanted.bf16_last_blocks), switch)
    return variants


def _forget_delayed_layers() -> None:
    """Or those of earlier widths would be updated with each step of this one."""
    from transformer_engine.pytorch.quantization import FP8GlobalStateManager

    FP8GlobalStateManager.reset()


def _sharing(model: nn.Module) -> nn.Module:
    """A copy of the modules around the same parameters."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


# Timing


def time_in_turn(scene: Scene, ways: dict[str, Way | str], flops: float) -> dict[str, dict[str, Any]]:
    """By way: milliseconds, ratios to bf16 and to compiled bf16 (above 1: faster), arithmetic, memory above what stands between passes.

    A way that is only words is not applicable, for that reason; one that fails, as compiled bf16 does where there is no compiler, says so, and the
    others are timed.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, way in ways.items():
        if isinstance(way, str):
            found[name] = {"not_applicable": way}
            continue
        try:
            for _ in range(scene.sized(4, 1)):
                way()
            found[name] = {"peak_bytes": _peak_bytes(scene, way)}
        except Exception as error:  # a compiler that is missing, a kernel that refuses: a finding about this way alone
            found[name] = {"failed": one_line(error)}
    timed = {name: ways[name] for name in found if "peak_bytes" in found[name]}
    rounds = [
        {name: _seconds(scene, timed[name]) for name in _turned(list(timed), number)}
        for number in range(scene.sized(16, 2))
    ]
    peak = None if scene.emulated else peak_flops(torch.cuda.get_device_name(), "bf16")
    for name in timed:
        seconds = statistics.median(row[name] for row in rounds)
        ratios = {
            key: statistics.median(row[reference] / row[name] for row in rounds)
            for key, reference in (("over_bf16", BF16), ("over_compiled", COMPILED))
            if reference in timed
        }
        mfu = {"mfu_of_bf16_peak": flops / seconds / peak} if peak else {}
        found[name] |= {"milliseconds": seconds * 1e3, "teraflops_per_second": flops / seconds / 1e12, **ratios, **mfu}
    return found


def _turned(names: list[str], number: int) -> list[str]:
    """Another one is first in each round, so that none has the better place."""
    turn = number % max(1, len(names))
    return names[turn:] + names[:turn]


def _seconds(scene: Scene, run: Way) -> float:
    if scene.emulated:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3


def _peak_bytes(scene: Scene, run: Way) -> int | None:
    if scene.emulated:
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
