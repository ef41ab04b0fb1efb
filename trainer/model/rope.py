"""What a recipe says of rotary positions over what stands there already, as one `rope_parameters`.

transformers itself takes one of two names that both say something and forgets the other, the base of the positions with it.
"""

from collections.abc import Mapping
from typing import Any

NAMES = {"rope_parameters", "rope_scaling", "rope_theta"}
"""Fields that say how positions rotate: today's, and the two of transformers 4."""

_KEPT = ("rope_theta", "partial_rotary_factor")
"""What stays where the recipe names another form, and neither of these."""


def with_rope(fields: dict[str, Any], wanted: Mapping[str, Any], rope: Any) -> dict[str, Any]:
    """The fields of a config, `wanted` among them, where `rope` are the `rope_parameters` that would hold without it.

    As they are where nothing is wanted of positions, or these are of several kinds (a form for each kind of layer).
    """
    if not rope or not wanted.keys() & NAMES or of_several_kinds(rope):
        return fields
    form = next((wanted[name] or {} for name in ("rope_parameters", "rope_scaling") if name in wanted), rope)
    if not isinstance(form, Mapping):
        return fields
    base = {name: rope[name] for name in _KEPT if name in rope}
    given = {"rope_theta": wanted["rope_theta"]} if "rope_theta" in wanted else {}
    others = {name: value for name, value in fields.items() if name not in NAMES}
    return {**others, "rope_parameters": {**base, **form, **given}}


def of_several_kinds(rope: Mapping[str, Any]) -> bool:
    """Whether it holds a form for each kind of layer, as Gemma 3's does."""
    return any(isinstance(form, dict) for form in rope.values())
