"""Which parameter is trained how: every trainable one in exactly one named group, and the group's hyperparameters.

    group        holds                                    decay   with muon
    hidden       2-D weights inside the blocks            yes     Muon
    embeddings   lookup tables and the head               yes     AdamW
    matrices     what else has two or more dimensions     yes     AdamW (stacked experts, for one)
    vectors      norms and biases                         no      AdamW

Embeddings decay, as they do in nanoGPT: rows that rarely occur shrink instead of keeping their noise.
"""

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from trainer.errors import CheckpointError, ConfigError

GROUP_NAMES = ("hidden", "embeddings", "matrices", "vectors")


def named_groups(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The trainable parameters by group name, in the model's order; groups without any are left out."""
    outer = {id(parameter) for parameter in _embeddings_and_head(model)}
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in GROUP_NAMES}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups[_group_of(parameter, id(parameter) in outer)].append(parameter)
    return {name: parameters for name, parameters in groups.items() if parameters}


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


def hyperparameters(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Everything the groups hold but their parameters: rates, decay, names, as the config set them."""
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def restore_hyperparameters(optimizer: Optimizer, saved: list[dict[str, Any]]) -> None:
    """Puts back what `hyperparameters` returned before a checkpoint was loaded: the config wins over the checkpoint.

    raises CheckpointError when the checkpoint's groups are others
    """
    names = [group["name"] for group in optimizer.param_groups]
    expected = [group["name"] for group in saved]
    if names != expected:
        raise CheckpointError(
            f"the checkpoint's optimizer has the parameter groups {', '.join(map(str, names))}, and this run's has {', '.join(map(str, expected))}; "
            "resume with the settings and the version that wrote it, or start a new run: name=..."
        )
    for group, values in zip(optimizer.param_groups, saved, strict=True):
        group.update(values)
