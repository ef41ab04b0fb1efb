"""What a family does to its logits after the head: a factor (Cohere, Granite), a soft cap (Gemma 2), or nothing."""

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PretrainedConfig

FACTORS = ("logit_scale", "lm_head_multiplier", "logits_scaling")
DIVISORS = ("logits_scaling",)
CAPS = ("final_logit_softcapping",)
"""Fields of configs by which logits are multiplied, divided and capped; families use one name in two ways, so each is tried."""


@dataclasses.dataclass(frozen=True, slots=True)
class AfterHead:
    """logits -> cap x tanh(factor x logits / cap), without tanh where there is no cap."""

    factor: float = 1.0
    cap: float | None = None

    @property
    def is_nothing(self) -> bool:
        return self.factor == 1.0 and self.cap is None

    def __call__(self, logits: Tensor) -> Tensor:
        """The changed logits, in memory of their own; a logit stays itself where nothing is done."""
        if self.factor != 1.0:
            logits = logits * self.factor
        return logits if self.cap is None else (logits / self.cap).tanh() * self.cap

    def in_place(self, logits: Tensor, slopes: Tensor | None) -> None:
        """Changes logits where they lie; `slopes`, of their shape and for a cap only, becomes the slope of tanh."""
        if self.cap is None:
            logits *= self.factor
            return
        logits.mul_(self.factor / self.cap).tanh_()
        if slopes is not None:
            torch.addcmul(logits.new_ones(()), logits, logits, value=-1, out=slopes)
        logits *= self.cap

    def back_in_place(self, gradient: Tensor, slopes: Tensor | None) -> None:
        """The gradient of what `in_place` made becomes that of the logits."""
        if slopes is not None:
            gradient *= slopes
        if self.factor != 1.0:
            gradient *= self.factor


NOTHING = AfterHead()


def candidates(config: PretrainedConfig) -> Iterator[AfterHead]:
    """What a model of this config may do to its logits, the likeliest first; which it is, a comparison shows."""
    factors = [
        1.0,
        *(float(value) for name in FACTORS if (value := _number(config, name))),
        *(1 / value for name in DIVISORS if (value := _number(config, name))),
    ]
    caps = [None, *(value for name in CAPS if (value := _number(config, name)))]
    for cap in caps:
        for factor in dict.fromkeys(factors):
            yield AfterHead(factor, cap)


def _number(config: PretrainedConfig, name: str) -> float | None:
    value = getattr(config, name, None)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and value else None
