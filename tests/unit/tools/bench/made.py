"""Curves and measurements as launches would leave them."""

from trainer.tools.bench.choose import Variant
from trainer.tools.bench.measure import WARM_UP_STEPS, Measurement, measurement

BF16, COMPILED = Variant(), Variant(is_compiled=True)
CURRENT, BLOCK = Variant("current"), Variant("block")
EMULATED = Variant("current", is_emulated=True)


def steps(seconds=1.0, losses=None, num=WARM_UP_STEPS + 4, **more):
    """A launch's records: slow warm-up steps, then steps of so many seconds."""
    losses = losses or [5.0] * num
    return [
        {"step": number + 1, "step_seconds": 99.0 if number < WARM_UP_STEPS else seconds, "loss": loss, **more}
        for number, loss in enumerate(losses)
    ]


def measured(variant, tokens_per_second, *, spread=0.0, has_run_away=False) -> Measurement:
    return Measurement(variant, 1000 / tokens_per_second, spread, tokens_per_second, None, None, 0.0, has_run_away)


def figures(variant, *rounds, reference=None, tokens_a_step=1000, max_loss_gap=0.02) -> Measurement:
    return measurement(variant, rounds, reference, tokens_a_step=tokens_a_step, max_loss_gap=max_loss_gap)
