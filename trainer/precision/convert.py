"""Which layers of a model compute in fp8, and their replacement before the optimizer exists.

The linear layers of the blocks do, but for the first and last blocks, routers, those that share a weight, and those whose widths the recipe
does not take. Experts do not, where all of a block lie in one parameter: that is no linear layer. Embeddings, head, norms and attention stay as they are. Accelerate would walk the model with a converter of its own
afterwards, and take every `nn.Linear` and `nn.LayerNorm` that is left: a head would lose its tie and its place in the optimizer by that.
So these become classes that it does not recognise.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import nn

from trainer.config.schema import PrecisionConfig
from trainer.errors import PrecisionError
from trainer.precision.layers import PlainLayerNorm, PlainLinear, Switch, enter_around, fp8_classes
from trainer.precision.recipes import Recipe

ROUTERS = frozenset({"gate", "router", "shared_expert_gate"})
"""Names of layers that choose experts: small, and a wrong choice is not a rounding error."""

BY_WEIGHT = frozenset({"dt_proj"})
"""Names of layers whose weight is multiplied by the block itself (Mamba), which never calls them."""

QKV = {"q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value", "c_attn", "Wqkv", "query", "key", "value"}


@dataclass(frozen=True)
class Layer:
    """A linear layer of a block."""

    name: str
    kind: str
    """`Linear` or `Conv1D`."""
    in_features: int
    out_features: int
    role: str
    """`qkv`, `attention_out`, `mlp_up`, `mlp_down` or `other`: what statistics are gathered by."""
    kept: str | None = None
    """Why it stays in bf16; None: it computes in fp8."""

    @property
    def num_weights(self) -> int:
        return self.in_features * self.out_features


def survey(model: nn.Module, recipe: Recipe, *, first: int, last: int) -> list[Layer]:
    """Every linear layer of the blocks, with what becomes of it; the model may be on the meta device.

    first, last   number of blocks at either end that stay in bf16
    """
    name, blocks = find_blocks(model)
    uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    layers = []
    for number, block in enumerate(blocks):
        edge = number < first or number >= len(blocks) - last
        for inner, module in block.named_modules():
            if kind := _kind(module):
                width_in, width_out = module.weight.shape if kind == "Conv1D" else reversed(module.weight.shape)
                role = role_of(inner, width_in, width_out)
                layer = Layer(f"{name}.{number}.{inner}", kind, width_in, width_out, role)
                layers.append(_with_reason(layer, recipe, edge, is_shared=uses[id(module.weight)] > 1))
    return layers


def stacked_parameters(model: nn.Module) -> list[str]:
    """The parameters of the blocks that hold several matrices each, by name."""
    name, blocks = find_blocks(model)
    return [f"{name}.{inner}" for inner, p in blocks.named_parameters() if p.ndim == 3 and min(p.shape) > 1]


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The list of the model's blocks and its name: the first as long as the config says, else the longest."""
    modules = model.named_modules()
    lists = [(name, module) for name, module in modules if isinstance(module, nn.ModuleList) and len(module)]
    wanted = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    for name, module in lists:
        if len(module) == wanted:
            return name, module
    return max(lists, key=lambda found: len(found[1]), default=("", nn.ModuleList()))


def _kind(module: nn.Module) -> str | None:
    if type(module) is nn.Linear:
        return "Linear"
    # transformers' class, recognised by its form: this room does not import transformers.
    is_named = type(module).__name__ == "Conv1D" and hasattr(module, "nf")
    return "Conv1D" if is_named and module.weight.ndim == 2 and module.weight.shape[1] == module.nf else None


def _with_reason(layer: Layer, recipe: Recipe, edge: bool, is_shared: bool) -> Layer:
    kept = None
    if edge:
        kept = "in one of the first or last blocks"
    elif is_shared:
        # TransformerEngine wants a layer once in a pass, and arithmetic is counted by weights (Zamba shares a block's).
        kept = "its weight is used in more than one place"
    elif layer.name.rsplit(".", 1)[-1] in ROUTERS:
        kept = "a router"
    elif layer.name.rsplit(".", 1)[-1] in BY_WEIGHT:
        kept = "its block multiplies with its weight without calling it"
    elif layer.in_features % recipe.multiple or layer.out_features % recipe.multiple:
        kept = f"its widths {layer.in_features} and {layer.out_features} are not both multiples of {recipe.multiple}"
    return replace(layer, kept=kept)


def role_of(name: str, width_in: int, width_out: int) -> str:
    """What a layer of a block does, by its name and shape: which of the four products of a block it is."""
    parts = name.split(".")
    if parts[-1] in QKV:
        return "qkv"
    if any("attn" in part or "attention" in part for part in parts[:-1]):
        return "attention_out"
    if width_out > width_in:
        return "mlp_up"
    return "mlp_down" if width_out < width_in else "other"


def misfit(
    model: nn.Module, recipe: Recipe, wanted: PrecisionConfig, *, micro_batch: int, sequence_length: int
) -> str | None:
    """Why nothing can run in fp8 with this model and batch, as a clause that names setting or layer; None when something can."""
    first, last, num_blocks = wanted.bf16_first_blocks, wanted.bf16_last_blocks, len(find_blocks(model)[1])
    layers = survey(model, recipe, first=first, last=last)
    if stranger := _stranger(model):
        return stranger
    if not layers:
        return f"{type(model).__name__} has no linear layers in its blocks that could be replaced"
    if first + last >= num_blocks:
        return f"precision.bf16_first_blocks {first} and precision.bf16_last_blocks {last} leave none of the {num_blocks} blocks"
    if all(layer.kept for layer in layers):
        layer = next((layer for layer in layers if "multiples" in (layer.kept or "")), layers[0])
        return f"no layer fits precision.recipe {recipe.name!r}: {layer.name} stays in bf16, because {layer.kept}"
    if (tokens := micro_batch * sequence_length) % recipe.multiple:
        return (
            f"a micro-batch has micro_batch {micro_batch} x sequence_length {sequence_length} = {tokens} tokens, and precision.recipe {recipe.name!r} "
            f"needs a multiple of {recipe.multiple}"
        )
    return None


def _stranger(model: nn.Module) -> str | None:
    """A layer that Accelerate's converter would replace although its arithmetic may be its own, in words."""
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.LayerNorm)) and type(module) not in (nn.Linear, nn.LayerNorm):
            base = "nn.Linear" if isinstance(module, nn.Linear) else "nn.LayerNorm"
            return f"{name} is a {type(module).__name__}, a subclass of {base} that Accelerate would replace under fp8"
    return None


def convert(model: nn.Module, layers: Sequence[Layer], switch: Switch) -> dict[str, nn.Module]:
    """Replaces the layers that compute in fp8 and hides the others from Accelerate; returns the new ones by name.

    Parameters stay the same objects under the same names. raises PrecisionError where the model has layers that cannot be hidden
    """
    if stranger := _stranger(model):
        raise PrecisionError(f"fp8: {stranger}; take another model, or a cluster file that says bf16")
    converted = {}
    for layer in layers:
        if layer.kept is None:
            parent, _, child = layer.name.rpartition(".")
            replaced = model.get_submodule(layer.name)
            converted[layer.name] = fp8_classes()[layer.kind](replaced, switch)
            setattr(model.get_submodule(parent), child, converted[layer.name])
    hide(model)
    if switch.around_model and converted:
        owner, _, _ = find_blocks(model)[0].rpartition(".")
        enter_around(model.get_submodule(owner), switch)
    return converted


def hide(model: nn.Module) -> None:
    """Gives what Accelerate would convert a class that it does not recognise; the objects stay, with all they hold."""
    for module in _recognised(model):
        module.__class__ = PlainLinear if isinstance(module, nn.Linear) else PlainLayerNorm


def _recognised(model: nn.Module) -> Iterator[nn.Module]:
    return (module for module in list(model.modules()) if type(module) in (nn.Linear, nn.LayerNorm))
