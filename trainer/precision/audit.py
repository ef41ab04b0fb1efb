"""What is true after Accelerate has prepared a model for fp8, and what really ran: each of its silent faults becomes a sentence.

Accelerate's own conversion unties a head, leaves it out of the optimizer, adds biases to norms, stops at the first odd layer, and puts no
fp8 context around a sharded model. Nothing of that may go unnoticed, since a run looks healthy with all of it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from trainer.errors import PrecisionError
from trainer.experts import active_share
from trainer.precision.convert import Layer, find_blocks


@dataclass(frozen=True)
class Census:
    """The parameters of a model as objects, its keys, and its tie: what no preparation may change."""

    parameters: dict[str, nn.Parameter]
    facts: dict[str, tuple[Any, ...]]
    """Shape, type and whether it is trained, by name."""
    keys: tuple[str, ...]
    """Of the state dict."""
    is_tied: bool


def census(model: nn.Module) -> Census:
    """Takes the census of a transformers model."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    facts = {name: (tuple(p.shape), p.dtype, p.requires_grad) for name, p in parameters.items()}
    return Census(parameters, facts, tuple(model.state_dict()), _is_tied(model))


def _is_tied(model: nn.Module) -> bool:
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    return head is not None and head.weight is embedding.weight


@dataclass(frozen=True)
class Coverage:
    """How much of the arithmetic is in fp8."""

    num_layers: int
    num_linear_layers: int
    """Linear layers in all blocks."""
    block_fraction: float
    """Of the arithmetic of the blocks' matrices."""
    matmul_fraction: float
    """Of all matrix products, head and attention included."""

    @property
    def words(self) -> str:
        return (
            f"{self.num_layers} of {self.num_linear_layers} linear layers, {self.block_fraction:.1%} of the blocks' linear arithmetic, "
            f"{self.matmul_fraction:.1%} of all matrix products"
        )


def coverage(
    model: nn.Module, layers: Sequence[Layer], flops_per_token: float, *, forward_only: bool = False
) -> Coverage:
    """The share of fp8 by arithmetic.

    flops_per_token   of the whole model, forward and backward: six for each weight of a matrix product, and attention (model/flops.py)
    forward_only      whether two of the three products of a layer, those of its backward pass, are not in fp8
    """
    inside = [layer for layer in layers if layer.kept is None]
    weights = sum(layer.num_weights for layer in inside)
    in_blocks = sum(
        p.numel() * active_share(name, p.shape, lambda field: getattr(model.config, field, None))
        for name, p in find_blocks(model)[1].named_parameters()
        if p.ndim >= 2
    )
    in_fp8 = (2.0 if forward_only else 6.0) * weights
    return Coverage(len(inside), len(layers), in_fp8 / max(6.0 * in_blocks, 1.0), in_fp8 / flops_per_token)


def check_prepared(
    before: Census, model: nn.Module, converted: Mapping[str, nn.Module], mixed_precision: str, optimizer: Optimizer
) -> None:
    """Refuses a model that is not, parameter by parameter, the one that was built, with the converted layers in it.

    before            the census before the conversion
    mixed_precision   what Accelerate says it computes in
    optimizer         what was built on the model
    """
    now = census(model)
    faults = [*_parameter_faults(before, now), *_layer_faults(model, converted), *_optimizer_faults(now, optimizer)]
    if mixed_precision != "fp8":
        faults.append(f"Accelerate was asked for fp8 and says {mixed_precision}")
    if faults:
        raise PrecisionError(
            f"fp8: what Accelerate prepared is not the model that was built: {'; '.join(faults)}. This is a fault of this trainer or of a version "
            "of Accelerate it was not tested with; train with a cluster file that says bf16"
        )


def _parameter_faults(before: Census, now: Census) -> Iterator[str]:
    if before.is_tied and not now.is_tied:
        yield "the head is no longer tied to the embedding"
    if replaced := [name for name, p in before.parameters.items() if now.parameters.get(name) is not p]:
        yield f"{len(replaced)} parameters were replaced or lost ({some(replaced)})"
    if changed := [name for name, fact in before.facts.items() if now.facts.get(name, fact) != fact]:
        yield f"{len(changed)} parameters changed shape, type or training ({some(changed)})"
    if added := sorted(now.facts.keys() - before.facts.keys()):
        yield f"{len(added)} parameters came out of nowhere ({some(added)})"
    if before.keys != now.keys:
        different = sorted(set(before.keys) ^ set(now.keys)) or ["the order"]
        yield f"a checkpoint would have other keys ({some(different)})"


def _layer_faults(model: nn.Module, converted: Mapping[str, nn.Module]) -> Iterator[str]:
    if not converted:
        yield "no layer was converted to fp8"
    if lost := [name for name, layer in converted.items() if model.get_submodule(name) is not layer]:
        yield f"{len(lost)} of {len(converted)} fp8 layers were replaced ({some(lost)})"


def _optimizer_faults(now: Census, optimizer: Optimizer) -> Iterator[str]:
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    if missing := [name for name, p in now.parameters.items() if p.requires_grad and id(p) not in grouped]:
        yield f"{len(missing)} parameters are trained by nobody ({some(missing)})"
    if strangers := set(grouped) - {id(p) for p in now.parameters.values()}:
        yield f"the optimizer trains {len(strangers)} parameters that are not the model's"
    if len(set(grouped)) < len(grouped):
        yield "the optimizer has a parameter twice"


def forget_what_ran(converted: Mapping[str, nn.Module]) -> None:
    """Begins to watch anew which layers compute in fp8."""
    for layer in converted.values():
        layer.ran_in_fp8 = False


def check_ran(converted: Mapping[str, nn.Module], when: str) -> None:
    """Refuses a run whose fp8 layers did not compute in fp8 since `forget_what_ran`."""
    if idle := [name for name, layer in converted.items() if not layer.ran_in_fp8]:
        raise PrecisionError(
            f"fp8: {len(idle)} of {len(converted)} layers did not compute in fp8 in {when} ({some(idle)}), so the run would be called what it is "
            "not; train with a cluster file that says bf16"
        )


def some(names: Sequence[str]) -> str:
    """The first three names, and whether there are more."""
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
