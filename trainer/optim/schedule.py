"""The learning rate as a pure function of the step: nothing is saved, restored or stepped.

Every schedule is a warm-up and a decay around a peak of 1:

    multiplier  1 |    /----\\
                  |   /      \\
                  |  /        \\___ min_lr_fraction
                  +--|---------|--> step, the first update is step 0
                   peak       last
"""

import math
from collections.abc import Callable

from trainer.errors import ConfigError
from trainer.text import did_you_mean

Decay = Callable[[int, int, int, float], float]
"""(steps since the peak, steps from peak to last, max_steps, decay_fraction) -> height over the minimum, in [0, 1]."""


def cosine(since: int, available: int, max_steps: int, decay_fraction: float) -> float:
    """Half a cosine from the peak to the last step. Source: Loshchilov & Hutter 2017, without restarts."""
    return 0.5 * (1.0 + math.cos(math.pi * _progress(since, available)))


def linear(since: int, available: int, max_steps: int, decay_fraction: float) -> float:
    """A straight line from the peak to the last step."""
    return 1.0 - _progress(since, available)


def wsd(since: int, available: int, max_steps: int, decay_fraction: float) -> float:
    """Stays at the peak, then a line through the last `decay_fraction` of all steps. Source: Hu et al. 2024."""
    decaying = min(available, max(1, round(decay_fraction * max_steps)))
    return 1.0 - _progress(since - (available - decaying), decaying)


def constant(since: int, available: int, max_steps: int, decay_fraction: float) -> float:
    """Stays at the peak; the minimum does not count."""
    return 1.0


SCHEDULES: dict[str, Decay] = {"cosine": cosine, "linear": linear, "wsd": wsd, "constant": constant}


def build_schedule(
    name: str, *, max_steps: int, warmup_steps: int = 0, min_lr_fraction: float = 0.0, decay_fraction: float = 0.2
) -> Callable[[int], float]:
    """The multiplier of the peak learning rate for the update numbered `step` (the first is 0), in [0, 1].

    The first update of a warm-up has 1 / warmup_steps, its last has 1; the last of all has `min_lr_fraction` (but 1
    where the warm-up takes the whole run), and so have steps after it.

    decay_fraction  share of max_steps in which `wsd` decays, at the end and not before the peak
    raises          ConfigError for an unknown name, a warm-up longer than the run, fractions outside [0, 1]
    """
    problems = []
    if name not in SCHEDULES:
        problems.append(f"schedule.name {name!r} is not a schedule; {did_you_mean(name, SCHEDULES)}")
    if not 0 <= warmup_steps <= max_steps:
        problems.append(
            f"schedule.warmup_steps {warmup_steps} is not between 0 and max_steps {max_steps}; "
            "shorten the warm-up or lengthen the run"
        )
    for key, fraction in (("min_lr_fraction", min_lr_fraction), ("decay_fraction", decay_fraction)):
        if not 0.0 <= fraction <= 1.0:
            problems.append(f"schedule.{key} {fraction} is not between 0 and 1")
    if problems:
        raise ConfigError(*problems)

    decay = SCHEDULES[name]
    peak_step = max(warmup_steps - 1, 0)
    available = max_steps - 1 - peak_step

    def multiplier(step: int) -> float:
        if step < peak_step:
            return (step + 1) / warmup_steps
        height = decay(min(step - peak_step, available), available, max_steps, decay_fraction)
        return min_lr_fraction + (1.0 - min_lr_fraction) * height

    return multiplier


def _progress(since: int, over: int) -> float:
    """How far a stretch is behind us, in [0, 1]; a stretch of no length has not begun."""
    return min(max(since / over, 0.0), 1.0) if over > 0 else 0.0
