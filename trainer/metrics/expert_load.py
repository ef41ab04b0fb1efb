"""What is known of a model's experts: tags, and the numbers that are drawn of how a step's tokens were spread over them."""

from collections.abc import Sequence

from torch import Tensor

from trainer.host_copy import NamedHostCopy
from trainer.metrics.probes import Reading

AUX_LOSS = "router/aux_loss"

_LEAST, _MOST, _ENTROPY = "router/load_least/{group}", "router/load_most/{group}", "router/load_entropy/{group}"

TAGS = {
    AUX_LOSS: (
        "",
        "auxiliary loss of the routers, without its coefficient; experts a token when all are loaded alike; no part of the validation loss",
    ),
    _LEAST: ("0..1", "fraction of the step's tokens that the least loaded expert of a layer saw; 0: it learns nothing"),
    _MOST: (
        "0..1",
        "the same of the most loaded one; when all are loaded alike, both are experts a token over experts",
    ),
    _ENTROPY: ("0..1", "entropy of the experts that a layer drew, over that of an even load: 1 is even"),
}
"""Tag -> (unit, help)."""


def load_reading(step: int, layers: Sequence[str], facts: Tensor) -> Reading:
    """The load of a step's experts, on its way to the host; `facts` [L, 3] are least, most and entropy of each layer."""
    least, most, entropy = facts.float().unbind(1)
    numbers = NamedHostCopy({_LEAST: least, _MOST: most, _ENTROPY: entropy})
    return Reading(step, list(layers), numbers, None)
