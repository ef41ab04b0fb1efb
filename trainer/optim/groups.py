"""Which parameter is trained how: every trainable one in exactly one named group, and the group's hyperparameters.

The kinds below, and what `optimizer.groups` says besides (rules.py): the parameters of a kind that follow one entry are a group.

    group        holds                                    decay   with muon
    hidden       2-D weights inside the blocks            yes     Muon
    embeddings   lookup tables and the head               yes     AdamW
    matrices     what else has two or more dimensions     yes     AdamW (stacked experts, for one)
    vectors      norms and biases                         no      AdamW

Embeddings decay, as they do in nanoGPT: rows that rarely occur shrink instead of keeping their noise.
"""

from collections.abc import Collection, Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from trainer.config.groups import ParameterGroup
from trainer.config.optimizers import OptimizerEntry, OptimizerSettings
from trainer.errors import ConfigError

GROUP_NAMES = ("hidden", "embeddings", "matrices", "vectors")


def named_groups(model: nn.Module, frozen: Collection[str] = ()) -> dict[str, dict[str, nn.Parameter]]:
    """The trainable parameters by group name and by their own, in the model's order; groups without any are left out.

    frozen  names of parameters that count as trainable besides
    """
    outer = {id(parameter) for parameter in _embeddings_and_head(model)}
    groups: dict[str, dict[str, nn.Parameter]] = {name: {} for name in GROUP_NAMES}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or name in frozen:
            groups[_group_of(parameter, id(parameter) in outer)][name] = parameter
    return {name: parameters for name, parameters in groups.items() if parameters}


def group_settings(
    entry: OptimizerEntry, settings: OptimizerSettings, kind: str, rule: ParameterGroup | None
) -> dict[str, Any]:
    """What torch's group holds beside its parameters, for those of a kind that follow an entry of `optimizer.groups`; None: follow none.

    An optimizer's own rate (that of Muon's matrices) is changed by the factor by which the entry changes the common one.
    """
    values = entry.hyperparameters(settings, kind)
    if rule is not None and rule.lr is not None:
        own = values["lr"]
        values["lr"] = rule.lr if own == settings.lr else own * (rule.lr / settings.lr)
    if rule is not None and rule.weight_decay is not None and kind != "vectors":
        values["weight_decay"] = rule.weight_decay
    return values


def _group_of(parameter: nn.Parameter, is_outer: bool) -> str:
    if parameter.ndim < 2:
        return "vectors"
    if is_outer:
        return "embeddings"
    return "hidden" if parameter.ndim == 2 else "matrices"


def _embeddings_and_head(model: nn.Module) -> Iterable[nn.Parameter]:
    """Weights of every lookup table and of the layer that gives the logits."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            yield module.weight
    for name in ("get_input_embeddings", "get_output_embeddings"):
        layer = getattr(model, name, lambda: None)()
        if layer is not None:
            yield layer.weight


def check_groups(model: nn.Module, optimizer: Optimizer) -> None:
    """Checks that every trainable parameter is in exactly one group, and nothing else is. raises ConfigError: a model may be made otherwise"""
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    missing = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in grouped]
    strangers = set(grouped) - {id(p) for p in model.parameters() if p.requires_grad}
    problems = [
        *([f"there are parameters that no optimizer group trains: {', '.join(missing)}"] if missing else []),
        *(["a parameter is in two optimizer groups"] if len(grouped) != len(set(grouped)) else []),
        *([f"{len(strangers)} parameters of the optimizer are not the model's"] if strangers else []),
    ]
    if problems:
        raise ConfigError(
            f"a {type(model).__name__} cannot be trained as it is: {'; '.join(problems)}; set model.config.model_type to another"
        )


def set_learning_rate(optimizer: Optimizer, factor: float) -> float:
    """Sets each group's rate to `factor` times its peak; returns the first group's.

    factor  what the schedule says for this step
    """
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return float(optimizer.param_groups[0]["lr"])


def rates_by_tag(optimizer: Optimizer) -> dict[str, float]:
    """The present rate of each entry of `optimizer.groups`, by the tag that it is drawn under; empty without entries.

    Where an entry holds matrices of another algorithm than AdamW too, these have a tag of their own.
    """
    labelled = [group for group in optimizer.param_groups if "label" in group]
    return {
        f"optim/lr/{group['label']}" + ("" if group["algorithm"] == "adamw" else f"_{group['algorithm']}"): float(
            group["lr"]
        )
        for group in labelled
    }
