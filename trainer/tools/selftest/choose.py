"""How many steps and kills fit the time, and at which moments to kill. Pure: the clock and the dice are handed in."""

import math
import random
from dataclasses import dataclass
from itertools import product

PROBE_STEPS = 2
"""Steps of the first launch, which measures: the second is like those that follow."""

MIN_KILLS, MAX_KILLS = 2, 5
MIN_PERIOD_STEPS, MIN_PERIOD_SECONDS = 3, 0.5
"""Least number of steps between two checkpoints: a kill between them has to meet its step."""
MAX_PERIODS = 4
LONGER_FACTOR = 3
"""How many times as many steps another attempt takes, when the kills of one came too late."""


@dataclass(frozen=True)
class Costs:
    """What the first launch took, in seconds."""

    start_seconds: float
    """From the command to the begin of the first step."""
    step_seconds: float
    end_seconds: float
    """From the last step to the end of the process: the last evaluation, checkpoint and export."""


@dataclass(frozen=True)
class Choice:
    """What will be run."""

    steps: int
    every_steps: int
    """Steps between two checkpoints."""
    num_kills: int
    seconds: float
    """What the straight and the killed run will take together, as estimated."""


@dataclass(frozen=True)
class Kill:
    """When to kill, and what."""

    step: int
    """Once this step was taken."""
    delay_seconds: float
    """So long after it: somewhere within the next step."""
    hits_writer: bool
    """Whether the process that writes checkpoints is killed too; it outlives the trainer otherwise."""


def choose(costs: Costs, seconds_left: float) -> Choice:
    """The most kills and steps that fit the time; the fewest that prove anything where not even those fit."""
    shapes = product(range(1, MAX_PERIODS + 1), range(MIN_KILLS, MAX_KILLS + 1))
    possible = [_choice(costs, num_kills, periods) for periods, num_kills in shapes]
    fitting = [choice for choice in possible if choice.seconds <= seconds_left]
    return max(fitting, key=lambda choice: (choice.num_kills, choice.steps), default=possible[0])


def is_too_short(choice: Choice, costs: Costs) -> bool:
    """Whether steps turned out to be so much shorter than those it was chosen for that a kill would come after the end."""
    return choice.every_steps * costs.step_seconds < MIN_PERIOD_SECONDS / 2


def longer(choice: Choice, costs: Costs) -> Choice:
    """The same kills over more steps, for an attempt after one whose kills came too late."""
    periods = choice.steps // choice.every_steps // (choice.num_kills + 1)
    return _choice(costs, choice.num_kills, periods, LONGER_FACTOR * choice.every_steps)


def _choice(costs: Costs, num_kills: int, periods: int, least_every_steps: int = MIN_PERIOD_STEPS) -> Choice:
    """One part of the run before the first kill, one between two, and one after the last, each of this number of periods."""
    every = max(least_every_steps, math.ceil(MIN_PERIOD_SECONDS / max(costs.step_seconds, 1e-4)))
    steps = (num_kills + 1) * periods * every
    taken = 2 * steps + num_kills * every  # those that a kill loses are replayed
    seconds = (2 + num_kills) * costs.start_seconds + 2 * costs.end_seconds + taken * costs.step_seconds
    return Choice(steps, every, num_kills, seconds)


def kills(choice: Choice, step_seconds: float, dice: random.Random) -> list[Kill]:
    """One kill in each part of the run but the last, after its first checkpoint and between two of them, so that steps are lost.

    Every other one hits the writer too, so that both happen whatever the dice say.
    """
    periods = choice.steps // choice.every_steps // (choice.num_kills + 1)
    hits_first = dice.random() < 0.5
    found = []
    for part in range(choice.num_kills):
        saved = dice.randint(part * periods + 1, (part + 1) * periods) * choice.every_steps
        step = saved + dice.randint(1, choice.every_steps - 1)
        found.append(Kill(step, dice.random() * step_seconds, hits_writer=(part % 2 == 0) == hits_first))
    return found
