"""The registry of optimizers: what an entry says, and the one list of them.

A new optimizer is one file in trainer/optim/ that holds its ENTRY, and one line in OPTIMIZERS; optim/adamw.py is the shortest example.
Settings, their help and checks, the parameter groups, the disk that a checkpoint needs and the facts of a replay follow from the entry.

The settings of all optimizers stand side by side in the section `optimizer`, those that only one reads under its name and an
underscore (`muon_lr`): an override, a recipe, a kept config.yaml and a record of a replay's facts each name them by one flat word.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, create_model

from trainer.config.groups import ParameterGroup
from trainer.config.section import Decay, Rate, Section
from trainer.errors import ConfigError
from trainer.text import did_you_mean

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

OPTIMIZERS = {"adamw": "trainer.optim.adamw", "muon": "trainer.optim.muon"}
"""The module of each optimizer by name. It is imported when settings are read, so it imports torch inside its functions only.

One whose settings are derived from another's stands below it.
"""


class OptimizerSettings(Section):
    """The optimizer and the clipping of gradients."""

    name: str = "adamw"
    lr: Rate = 6e-4
    """Peak learning rate; of muon, that of all but the hidden matrices."""
    weight_decay: Decay = 0.1
    """Decoupled weight decay of the same matrices; vectors (norms, biases) have none."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are scaled down to this total norm when theirs is larger."""
    groups: list[ParameterGroup] = []
    """Parameters that are trained otherwise, e.g. `[{match: "lm_head|embed", lr: 1e-5, weight_decay: 0}, {match: "layers.0.", freeze: true}]`: `match` is a regular expression searched for in their names, and the first entry that is found counts. `lr` is their peak rate, under the same schedule (the rate of Muon's matrices is changed by the same factor, lr / optimizer.lr); `weight_decay` that of their matrices; `freeze` keeps them as they are."""


@dataclass(frozen=True)
class OptimizerEntry:
    """What an optimizer is to the trainer."""

    help: str
    """What it does, in the help of `optimizer.name`."""
    settings: type[OptimizerSettings]
    """The shared settings, and its own."""
    hyperparameters: Callable[[Any, str], dict[str, Any]]
    """(its settings, name of a parameter group in optim/groups.py) -> what torch's group holds; `lr` is the peak.

    `algorithm` is the name of the entry whose state the group's parameters have, mostly its own.
    """
    build: Callable[[list[dict[str, Any]], bool], "Optimizer"]
    """(torch's groups, whether fused kernels may be taken) -> the optimizer."""
    state_bytes: Callable[["Tensor"], int]
    """Bytes of state that it keeps of a parameter."""
    conditions: Callable[[str], dict[str, Any]] = lambda device_type: {}
    """Facts besides settings, by name, that decide about the bits of a step on a type of device (`cpu`, `cuda`)."""


def optimizer_entry(name: str) -> OptimizerEntry:
    """The entry of this name. raises ConfigError where there is none"""
    if name not in OPTIMIZERS:
        raise ConfigError(f"optimizer.name {name!r} is not an optimizer; {did_you_mean(name, OPTIMIZERS)}")
    entry: OptimizerEntry = import_module(OPTIMIZERS[name]).ENTRY
    return entry


@cache
def optimizer_section() -> type[OptimizerSettings]:
    """The section `optimizer`: the settings of all entries, each with its own default."""
    entries = {name: optimizer_entry(name) for name in OPTIMIZERS}
    words = ", ".join(f"`{name}` ({entry.help})" for name, entry in entries.items())
    name: Any = Annotated[Literal[tuple(entries)], Field(description=f"{words}.")]
    bases = tuple(dict.fromkeys(entry.settings for entry in reversed(entries.values())))
    # Where it is found under its name, so that a config can be sent to another process.
    place = "trainer.config.schema"
    doc = OptimizerSettings.__doc__
    return create_model("OptimizerConfig", __base__=bases, __doc__=doc, __module__=place, name=(name, "adamw"))


def optimizer_conditions(name: str, device_type: str) -> dict[str, Any]:
    """The facts that decide about the bits of this optimizer's step; those of the others are None."""
    others = (optimizer_entry(other).conditions(device_type) for other in OPTIMIZERS)
    return {**{fact: None for facts in others for fact in facts}, **optimizer_entry(name).conditions(device_type)}
