"""How fast: a block's linear layers alone, and a whole step, in bf16, compiled bf16 and each fp8 recipe, at several widths.

Every way is built, timed and taken away in turn, and all of them again in a second round; medians over both. Forward and backward under
torch.autocast(bfloat16) as in training; a step has AdamW and the clipping of gradients too. Times by CUDA events.
"""

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.gpu.shown import Bar, Shown
from tests.gpu.stage import Size, Stage
from trainer.config.schema import PrecisionConfig
from trainer.model.build import build_model
from trainer.model.flops import flops_per_token, peak_flops
from trainer.model.resolve import resolve
from trainer.precision.convert import find_blocks
from trainer.precision.layers import Fp8Layer
from trainer.precision.watch import PrecisionWatch

WARM_UP, TIMES = 4, 8
BF16, COMPILED = "bf16", "bf16 compiled"


def speed(stage: Stage) -> Shown:
    """Everything that can be had at each width, beside what cannot and why."""
    bars, facts = [], {}
    for size in stage.speed_sizes:
        there, lacking = stage.recipes(size)
        ways = [BF16, *([COMPILED] if stage.compiled else []), *there]
        found: dict[str, dict[str, list[float]]] = {way: {"linears": [], "step": [], "bytes": []} for way in ways}
        for _ in range(stage.speed_rounds):
            for way in ways:
                _time(stage, size, way, found[way])
        medians = {way: {what: statistics.median(values) for what, values in numbers.items()} for way, numbers in found.items()}
        facts[str(size.width)] = {"size": vars(size), "medians": medians, "not_available": lacking, "mfu": _mfu(stage, size, medians)}
        bars += bars_of(size, medians, lacking, facts[str(size.width)]["mfu"])
    return Shown("speed", bars, facts)


def bars_of(size: Size, medians: dict[str, dict[str, float]], lacking: dict[str, str], mfu: dict[str, float | None]) -> list[Bar]:
    """Times as they are, and as ratios to the fastest bf16: above 1 is faster."""
    references = [way for way in (BF16, COMPILED) if way in medians]
    best = {what: min(medians[way][what] for way in references) for what in ("linears", "step")}
    bars = []
    for way, numbers in medians.items():
        used = "" if mfu[way] is None else f", MFU {mfu[way]:.1%}"
        memory = f", {numbers['bytes'] / 1e9:.1f} GB" if numbers["bytes"] else ""
        figure = (
            f"linears {numbers['linears'] * 1e3:.2f} ms ({best['linears'] / numbers['linears']:.2f}x), "
            f"step {numbers['step'] * 1e3:.1f} ms ({best['step'] / numbers['step']:.2f}x){used}{memory}"
        )
        bars.append(Bar(f"width {size.width}, {way}", figure, "none"))
    bars += [Bar(f"width {size.width}, {way}", f"n/a: {why}", "none") for way, why in lacking.items()]
    return bars


def _mfu(stage: Stage, size: Size, medians: dict[str, dict[str, float]]) -> dict[str, float | None]:
    """Of the peak in bf16, for every way: a step that is faster in fp8 has more of the same arithmetic done in a second."""
    peak = None if stage.emulated else peak_flops(torch.cuda.get_device_name(), "bf16")
    if peak is None:
        return dict.fromkeys(medians)
    config = resolve(None, size.config(), vocab_size=stage.vocab_size, sequence_length=size.sequence_length)
    flops = flops_per_token(config, size.sequence_length) * size.tokens
    return {way: flops / numbers["step"] / peak for way, numbers in medians.items()}


def _time(stage: Stage, size: Size, way: str, into: dict[str, list[float]]) -> None:
    """Builds a model this way and adds its times."""
    model = _model(stage, size, way)
    try:
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(0, stage.vocab_size, (size.micro_batch, size.sequence_length + 1), generator=generator).to(stage.device)
        into["linears"] += _seconds(stage, _linears(stage, size, model, compiled=way == COMPILED))
        if stage.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        into["step"] += _seconds(stage, _step(stage, model, tokens[:, :-1], tokens[:, 1:]))
        into["bytes"].append(torch.cuda.max_memory_allocated() if stage.device == "cuda" else 0)
    finally:
        del model
        gc.collect()
        torch.compiler.reset()
        if stage.device == "cuda":
            torch.cuda.empty_cache()


def _model(stage: Stage, size: Size, way: str) -> nn.Module:
    config = resolve(None, size.config(), vocab_size=stage.vocab_size, sequence_length=size.sequence_length)
    model = build_model(config, vocab_size=stage.vocab_size, seed=0, device=torch.device(stage.device))
    if way == COMPILED:
        for block in find_blocks(model)[1]:
            block.compile()
    elif way != BF16:
        block = PrecisionConfig(recipe=way, bf16_first_blocks=0, bf16_last_blocks=0)
        PrecisionWatch(stage.decision(way, size), block, model)
    return model


def _autocast(stage: Stage) -> torch.autocast:
    return torch.autocast(stage.device, torch.bfloat16)


def _linears(stage: Stage, size: Size, model: nn.Module, *, compiled: bool) -> Callable[[], None]:
    """Forward and backward through the linear layers of the first block, one after the other."""
    layers = [layer for layer in find_blocks(model)[1][0].modules() if isinstance(layer, (nn.Linear, Fp8Layer))]
    assert len(layers) == 7, "a block of Llama has four layers of attention and three of its MLP"
    made = [torch.randn(size.tokens, layer.in_features, device=stage.device, dtype=torch.bfloat16, requires_grad=True) for layer in layers]
    wanted = [torch.randn(size.tokens, layer.out_features, device=stage.device, dtype=torch.bfloat16) for layer in layers]
    called = [torch.compile(layer) for layer in layers] if compiled else layers

    def once() -> None:
        for layer, x, gradient in zip(called, made, wanted, strict=True):
            with _autocast(stage):
                y = layer(x)
            y.backward(gradient)
            x.grad = None
        for layer in layers:
            layer.zero_grad()

    return once


def _step(stage: Stage, model: nn.Module, inputs: Tensor, labels: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def once() -> None:
        with _autocast(stage):
            loss = model(inputs, labels=labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return once


def _seconds(stage: Stage, once: Callable[[], Any]) -> list[float]:
    """Seconds of each time, after a warm-up."""
    for _ in range(WARM_UP):
        once()
    if stage.device == "cpu":
        return [_clocked(once) for _ in range(TIMES)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(TIMES + 1)]
    torch.cuda.synchronize()
    events[0].record()
    for event in events[1:]:
        once()
        event.record()
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) / 1e3 for begin, end in zip(events, events[1:], strict=False)]


def _clocked(once: Callable[[], Any]) -> float:
    began = time.perf_counter()
    once()
    return time.perf_counter() - began
