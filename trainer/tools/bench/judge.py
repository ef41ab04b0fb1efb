"""What is a gain, and what is recommended. Pure.

A gain is one of at least LEAST_GAIN, and of more than the rounds of either variant differed among themselves. An emulation of fp8 and a
variant whose loss runs away are never recommended, however fast.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.precision.measured import LEAST_GAIN
from trainer.tools.bench.measure import Measurement

COMPILE_HINT = "dynamo_config of the cluster file, as in accelerate_configs/"


@dataclass(frozen=True)
class Judgement:
    """What the measurements come to."""

    best_bf16: Measurement | None
    """What the others are compared with: the fastest in bf16; None where that could not be measured."""
    gains: dict[str, float]
    """Of each fp8 recipe that may be used, by its name: its faster variant's tokens per second over the best bf16's, minus 1."""
    recommended: str | None
    """The name of a variant."""
    sentence: str


def judge(measured: Sequence[Measurement]) -> Judgement:
    """The recommendation. Of variants between which there is no gain, the one with less to go wrong: bf16 before fp8, and uncompiled first."""
    usable = [each for each in measured if not each.has_run_away and not each.variant.is_emulated]
    bf16 = [each for each in usable if each.variant.recipe is None]
    fp8 = [each for each in usable if each.variant.recipe is not None]
    if not bf16:
        return Judgement(
            None,
            {},
            None,
            "nothing is recommended: bf16 itself could not be measured here, and a gain is one over bf16",
        )
    best = _fastest(bf16)
    gains: dict[str, float] = {}
    for each in fp8:
        recipe = str(each.variant.recipe)
        gains[recipe] = max(gain(each, best), gains.get(recipe, -1.0))
    fastest_fp8 = _fastest(fp8) if fp8 else None
    if fastest_fp8 and is_gain(fastest_fp8, best):
        return Judgement(best, gains, fastest_fp8.variant.name, _take_fp8(fastest_fp8, best))
    chosen = best if best is bf16[0] or is_gain(best, bf16[0]) else bf16[0]
    about = "; ".join(filter(None, (_about_compile(bf16), _about_fp8(fastest_fp8, best))))
    return Judgement(best, gains, chosen.variant.name, f"take {chosen.variant.name}" + (f": {about}" if about else ""))


def gain(ours: Measurement, theirs: Measurement) -> float:
    """The gain in tokens per second, as a fraction."""
    return ours.tokens_per_second / theirs.tokens_per_second - 1


def is_gain(ours: Measurement, theirs: Measurement) -> bool:
    """Whether it is faster by more than a machine varies by."""
    return gain(ours, theirs) >= max(LEAST_GAIN, ours.spread, theirs.spread)


def compared(ours: Measurement, theirs: Measurement) -> str:
    """How fast one is beside another, as a clause that calls nothing a gain which is none."""
    more, varied = gain(ours, theirs), max(ours.spread, theirs.spread)
    size = f"{abs(more):.1%}"
    if is_gain(ours, theirs):
        return f"{size} more tokens/s than {theirs.variant.name}"
    if is_gain(theirs, ours):
        return f"{size} fewer tokens/s than {theirs.variant.name}"
    if abs(more) < LEAST_GAIN:
        return f"no gain: {size} is within what a machine varies by"
    return f"no gain: {size} is within the {varied:.1%} that this machine varied by meanwhile"


def _fastest(measured: Sequence[Measurement]) -> Measurement:
    """The first of the fastest."""
    return max(measured, key=lambda each: each.tokens_per_second)


def _take_fp8(fp8: Measurement, best: Measurement) -> str:
    compiled = f" and {COMPILE_HINT}" if fp8.variant.is_compiled else ""
    return f"take {fp8.variant.name}: {compared(fp8, best)} (mixed_precision: fp8{compiled} in the cluster file, precision.recipe={fp8.variant.recipe})"


def _about_compile(bf16: Sequence[Measurement]) -> str:
    """What torch.compile gives, where both were measured."""
    if len(bf16) < 2:
        return ""
    plain, compiled = bf16
    hint = f" ({COMPILE_HINT})" if is_gain(compiled, plain) else ""
    return f"torch.compile gives {compared(compiled, plain)}{hint}"


def _about_fp8(fastest: Measurement | None, best: Measurement) -> str:
    return f"{fastest.variant.name}, the fastest in fp8, gives {compared(fastest, best)}" if fastest else ""
