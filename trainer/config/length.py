"""How long a run is: max_steps, or the tokens or epochs that become it before anything else asks for it."""

import math
import sys
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from trainer.config.schema import Config
from trainer.errors import ConfigError
from trainer.text import count

LENGTHS = ("max_steps", "max_tokens", "max_epochs")
"""The settings of which exactly one counts."""

NOT_YET_KNOWN = sys.maxsize
"""Stands for max_steps while the rest of a config is checked, by which it is resolved."""


def length_of(values: Mapping[str, Any]) -> str | None:
    """Which of the three one place says; the first where it wrongly says several, None where it says nothing."""
    return next((key for key in LENGTHS if values.get(key) is not None), None)


def length_problems(values: Mapping[str, Any], places: Mapping[str, str]) -> dict[str, str]:
    """A sentence where one place says in two ways how long the run is, by the second key."""
    given = [key for key in LENGTHS if values.get(key) is not None]
    if len(given) < 2:
        return {}
    keys = " and ".join(f"{key} {values[key]} ({places[key]})" for key in given)
    return {given[1]: f"{keys} each say how long the run is; keep one"}


def resolve_length(config: Config, length: str, count_sequences: Callable[[Config], int] | None) -> tuple[int, str]:
    """(max_steps, how it came about, as words) of a run whose length is given as `max_tokens` or `max_epochs`; no less is trained on.

    count_sequences   how many training sequences the data of a config has
    raises            ConfigError where the data's size would be needed and cannot be asked for
    """
    if length == "max_tokens":
        assert config.max_tokens is not None
        per_step = config.global_batch * config.sequence_length
        words = f"max_tokens {count(config.max_tokens)} at {count(per_step)} tokens a step"
        return math.ceil(Fraction(config.max_tokens, per_step)), words
    if count_sequences is None:
        raise ConfigError("max_epochs needs the size of the data, which is not known here; set max_steps")
    sequences = count_sequences(config)
    epochs = Fraction(str(config.max_epochs))  # 0.1 is a tenth, and not the binary number beside it
    words = f"max_epochs {config.max_epochs:g} of {count(sequences)} sequences at {config.global_batch} a step"
    return math.ceil(epochs * sequences / config.global_batch), words


def is_due(step: int, every_steps: int) -> bool:
    """Whether what happens at multiples of `every_steps` (0: never) happens at this step."""
    return every_steps > 0 and step % every_steps == 0
