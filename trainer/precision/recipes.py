"""The ways to compute in fp8, by name: what each needs of a GPU and of shapes, and what TransformerEngine is told of it.

    name      scale of a tensor                                formats           GPU (compute capability)
    current   one, of the tensor as it is                      hybrid, e4m3      8.9 and newer (Ada, Hopper, Blackwell)
    delayed   one, of the steps before: it has a state         hybrid, e4m3      the same
    block     one for 1 x 128 (a weight: 128 x 128) elements   e4m3, hybrid      9.0 and newer, CUDA 12.9
    mxfp8     one for 32 elements, a power of two              e4m3, hybrid      10.0 and 10.3 (Blackwell of data centres)
    nvfp4     one for 16 elements of four bits                 e4m3 (of scales)  the same

`auto` is what `bench precision` measured to be the fastest, and where nobody measured, mxfp8 where the GPU has it and current elsewhere. One place to add a recipe: an entry in RECIPES.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.errors import PrecisionError
from trainer.text import did_you_mean

Capability = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way to compute in fp8.

    source   TransformerEngine 2.20: quantization.py (what a GPU must have), common/recipe (classes and their fields), tensor/*.py (shapes)
    """

    name: str
    title: str
    te_class: str
    """Its class in transformer_engine.common.recipe."""
    predicate: str
    """The function of transformer_engine.pytorch that says whether the GPU can do it."""
    capability: Capability
    """The oldest GPU that has it."""
    ends: Capability | None = None
    """The first newer one that has it no more."""
    cuda: tuple[int, int] | None = None
    """The oldest CUDA of torch, where that matters."""
    multiple: int
    """Widths and tokens of a micro-batch must be multiples: cuBLAS wants 16 bytes at the start of every row of every operand, and
    in the gradient of a weight the rows are as long as the micro-batch has tokens."""
    formats: tuple[str, ...]
    """The first is its own."""
    stateless: bool = True
    """Whether a step depends on nothing but weights, data and torch's random state (which nvfp4 rounds gradients by, and a checkpoint has):
    what makes a resume exact, recomputation right and caching harmless."""
    block: tuple[int, int] | None = None
    """Rows and columns of an activation that share a scale; None: the whole tensor."""
    largest: float = 448.0
    """The largest number of its forward format."""
    cut_off: float = 464.0
    """What is larger than this is cut off, and not only rounded to the largest."""
    smallest: float = 2.0**-9
    """The smallest above zero."""
    worst_error: float = 0.2
    """The relative error against fp32 that one layer's output and gradients stay below, on normal data."""
    options: frozenset[str] = frozenset()
    """Keyword arguments of the class that `precision.options` may set: those that change something in a linear layer."""


_ADA, _HOPPER, _BLACKWELL, _CONSUMER_BLACKWELL = (8, 9), (9, 0), (10, 0), (12, 0)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="current",
            title="current scaling",
            te_class="Float8CurrentScaling",
            predicate="is_fp8_available",
            capability=_ADA,
            multiple=16,
            formats=("hybrid", "e4m3"),
            options=frozenset({"backward_override"}),
        ),
        Recipe(
            name="delayed",
            title="delayed scaling",
            te_class="DelayedScaling",
            predicate="is_fp8_available",
            capability=_ADA,
            multiple=16,
            formats=("hybrid", "e4m3"),
            stateless=False,
            options=frozenset({"margin", "amax_history_len", "amax_compute_algo", "reduce_amax"}),
        ),
        Recipe(
            name="block",
            title="block scaling",
            te_class="Float8BlockScaling",
            predicate="is_fp8_block_scaling_available",
            capability=_HOPPER,
            cuda=(12, 9),
            multiple=128,
            formats=("e4m3", "hybrid"),
            block=(1, 128),
            options=frozenset(
                {"x_block_scaling_dim", "w_block_scaling_dim", "grad_block_scaling_dim", "backward_override"}
            ),
        ),
        Recipe(
            name="mxfp8",
            title="MXFP8 block scaling",
            te_class="MXFP8BlockScaling",
            predicate="is_mxfp8_available",
            capability=_BLACKWELL,
            ends=_CONSUMER_BLACKWELL,
            multiple=32,
            formats=("e4m3", "hybrid"),
            block=(1, 32),
            options=frozenset({"enable_2d_quantization", "backward_override"}),
        ),
        Recipe(
            name="nvfp4",
            title="NVFP4 block scaling",
            te_class="NVFP4BlockScaling",
            predicate="is_nvfp4_available",
            capability=_BLACKWELL,
            ends=_CONSUMER_BLACKWELL,
            multiple=16,
            formats=("e4m3",),
            block=(1, 16),
            largest=6.0,
            cut_off=7.0,
            smallest=0.5,
            worst_error=0.4,
            options=frozenset(
                {"disable_rht", "disable_stochastic_rounding", "disable_2d_quantization", "backward_override"}
            ),
        ),
    )
}


def recipe_of(name: str, capability: Capability | None) -> Recipe:
    """The recipe of this name; `auto`, where nobody measured, is mxfp8 on compute capability 10.0 and 10.3, and current elsewhere."""
    if name == "auto":
        return RECIPES["mxfp8" if capability in ((10, 0), (10, 3)) else "current"]
    return RECIPES[name]


def format_of(recipe: Recipe, wanted: str | None) -> str:
    """The number format, the recipe's own unless one is wanted; PrecisionError where the recipe does not have it."""
    if wanted is not None and wanted not in recipe.formats:
        raise PrecisionError(
            f"precision.format {wanted!r} is not one that precision.recipe {recipe.name!r} has: {', '.join(recipe.formats)}; leave it out, or "
            "take another recipe"
        )
    return wanted or recipe.formats[0]


def check_options(recipe: Recipe, options: Mapping[str, Any]) -> None:
    """Refuses options that TransformerEngine would drop without a word, or that do nothing to a linear layer."""
    for option in options:
        if option not in recipe.options:
            raise PrecisionError(
                f"precision.options.{option} is not an option of precision.recipe {recipe.name!r}, and TransformerEngine would drop it without a "
                f"word; {did_you_mean(option, recipe.options)}"
            )


def uncompiled_because(recipe: Recipe, torch_version: tuple[int, int]) -> str | None:
    """Why torch.compile and this recipe do not go together; None when they do.

    source   TransformerEngine 2.20: te.Linear is one operation to the compiler only with torch 2.14's opaque objects, and DelayedScaling never
    """
    if not recipe.stateless:
        return f"TransformerEngine's {recipe.te_class} refuses to be compiled"
    why = "TransformerEngine's layers can be compiled from torch 2.14 on, and each would break the graph of its block"
    return why if torch_version < (2, 14) else None
