"""Which entry of `optimizer.groups` each parameter follows: by its names, the first entry that is found counts.

A tensor with two names (a head that is tied to the embedding) follows an entry that is found in either.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from torch import nn

from trainer.config.groups import ParameterGroup
from trainer.config.optimizers import OptimizerSettings, optimizer_entry
from trainer.errors import ConfigError
from trainer.optim.groups import group_settings, named_groups
from trainer.text import count, few, numbered


@dataclass(frozen=True)
class Follower:
    """A parameter, and the entry that it follows."""

    parameter: nn.Parameter
    names: tuple[str, ...]
    """More than one where it is tied."""
    rule: int | None
    """The place of the entry in the list; None: it is trained as the settings of all say."""


def followers(model: nn.Module, rules: Sequence[ParameterGroup]) -> dict[str, Follower]:
    """Every parameter by its first name, in the model's order."""
    names: dict[int, tuple[str, ...]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)] = (*names.get(id(parameter), ()), name)
    return {
        name: Follower(parameter, own := names[id(parameter)], _rule_of(own, rules))
        for name, parameter in model.named_parameters()
    }


def _rule_of(names: Sequence[str], rules: Sequence[ParameterGroup]) -> int | None:
    return next(
        (number for number, rule in enumerate(rules) if any(re.search(rule.match, name) for name in names)), None
    )


def frozen_names(model: nn.Module, rules: Sequence[ParameterGroup]) -> list[str]:
    """The parameters that an entry freezes."""
    followed = followers(model, rules).items()
    return [name for name, follower in followed if follower.rule is not None and rules[follower.rule].freeze]


def former_groups(model: nn.Module, rules: Sequence[ParameterGroup]) -> dict[str, list[str]]:
    """The parameters in each group of a version without `optimizer.groups`, which trained all that can be trained."""
    return {kind: list(named) for kind, named in named_groups(model, frozen_names(model, rules)).items()}


def freeze(model: nn.Module, rules: Sequence[ParameterGroup]) -> None:
    """Takes the gradients from what an entry freezes; before the optimizer is built and the model is prepared.

    raises  ConfigError for an entry that no parameter follows, or that could change nothing, and where nothing would be left to train
    """
    followed = followers(model, rules)
    counts = Counter(follower.rule for follower in followed.values() if follower.parameter.requires_grad)
    problems = [_unused(model, number, rules, followed) for number in range(len(rules)) if not counts[number]]
    for number, rule in enumerate(rules):
        own = [follower.parameter for follower in followed.values() if follower.rule == number]
        if rule.weight_decay and own and all(parameter.ndim < 2 for parameter in own):
            problems.append(
                f"optimizer.groups: {rule.match!r} has weight_decay {rule.weight_decay:g}, and all that it matches are vectors (norms, biases), "
                "which do not decay; leave weight_decay out of it"
            )
    if rules and not problems and all(number is not None and rules[number].freeze for number in counts):
        problems.append(
            f"optimizer.groups freezes all {numbered(len(followed), 'parameter')} of this model, so nothing is trained; "
            "leave freeze out of one of its entries"
        )
    if problems:
        raise ConfigError(*problems)
    for name in frozen_names(model, rules):
        followed[name].parameter.requires_grad_(False)


def _unused(model: nn.Module, number: int, rules: Sequence[ParameterGroup], followed: Mapping[str, Follower]) -> str:
    """Why an entry has no parameter."""
    match = rules[number].match
    matched = [name for name, alone in followers(model, [rules[number]]).items() if alone.rule == 0]
    if not matched:
        return (
            f"optimizer.groups: {match!r} is found in no name of a parameter of this model; take it out, or make it match one of "
            f"{few(list(followed), most=20)}"
        )
    earlier = {rules[rule].match for name in matched if (rule := followed[name].rule) not in (None, number)}
    if not earlier:
        return f"optimizer.groups: all that {match!r} matches ({few(matched)}) is not trained in any case; take it out"
    return (
        f"optimizer.groups: all that {match!r} matches ({few(matched)}) follows an earlier entry "
        f"({', '.join(map(repr, sorted(earlier)))}), since the first one counts; put it before that, or take it out"
    )


def labels(rules: Sequence[ParameterGroup]) -> list[str]:
    """A word for each entry that tags can hold, no two alike: `lm_head|embed` -> `lm_head_embed`."""
    plain = [re.sub(r"[^A-Za-z0-9_-]+", "_", rule.match).strip("_")[:40] or "all" for rule in rules]
    return [word if plain.count(word) == 1 else f"{word}_{number}" for number, word in enumerate(plain, start=1)]


def descriptions(model: nn.Module, settings: OptimizerSettings) -> list[str]:
    """What each entry of `optimizer.groups` has matched and how that is trained, a line each, and then all others; empty without entries."""
    rules = settings.groups
    followed = list(followers(model, rules).values()) if rules else []
    lines = []
    for number, rule in [*enumerate(rules), (None, None)]:
        own = [follower for follower in followed if follower.rule == number]
        if own:
            names = few([" = ".join(follower.names) for follower in own])
            size = count(sum(follower.parameter.numel() for follower in own))
            how = _how_trained(model, settings, rule, {id(follower.parameter) for follower in own})
            lines.append(
                f"{rule.match if rule else 'all others'}: {numbered(len(own), 'tensor')} of {size} parameters ({names}): {how}"
            )
    return lines


def _how_trained(
    model: nn.Module, settings: OptimizerSettings, rule: ParameterGroup | None, parameters: Set[int]
) -> str:
    """The rates and the decay of some parameters, given by their identity; `frozen` where none of them is trained."""
    entry = optimizer_entry(settings.name)
    kinds = [kind for kind, named in named_groups(model).items() if not parameters.isdisjoint(map(id, named.values()))]
    if not kinds:
        return "frozen"
    held = [group_settings(entry, settings, kind, rule) for kind in kinds]
    rates = {values["algorithm"]: values["lr"] for values in held}
    decays = sorted({values.get("weight_decay", 0.0) for values in held} - {0.0})
    words = [
        _rate_words(rate, algorithm if len(rates) > 1 else "", settings, rule) for algorithm, rate in rates.items()
    ]
    return ", ".join([*words, *(f"weight decay {decay:g}" for decay in decays or [0.0])])


def _rate_words(rate: float, algorithm: str, settings: OptimizerSettings, rule: ParameterGroup | None) -> str:
    """A rate, of which algorithm where there are several, and how it came about where it is not the entry's own number."""
    notes = [algorithm] if algorithm else []
    if rule is not None and rule.lr is not None and rate != rule.lr:
        factor = rule.lr / settings.lr
        notes.append(f"{settings.name}_lr times {factor:.3g}, as {rule.lr:g} is optimizer.lr times {factor:.3g}")
    return f"lr {rate:g}" + (f" ({': '.join(notes)})" if notes else "")
