"""How much arithmetic a token costs, which is one half of MFU; the other, how much a GPU could do, is in gpus.py.

Convention: PaLM's (Chowdhery et al. 2022, appendix B). Six operations per token for each weight of a matrix product
(two forward, four backward), and 12 x layers x attention width x sequence length for the attention scores, the causal
half not subtracted. Recomputation under gradient checkpointing does not count: it is not progress.
"""

import re
from collections.abc import Iterator

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from trainer.experts import active_share
from trainer.model.shapes import ParameterCounts, Shapes, Weight


def parameter_counts(model: nn.Module) -> ParameterCounts:
    """Counts a model's parameters."""
    total, embedding = (sum(p.numel() for p in some) for some in (model.parameters(), _tables(model).values()))
    idle = sum(p.numel() * (1 - _active_share(name, p, model)) for name, p in model.named_parameters())
    return ParameterCounts(total=total, non_embedding=total - embedding, active=total - round(idle))


def flops_per_token(model: PreTrainedModel, sequence_length: int) -> float:
    """Operations to train on one token of a sequence: forward and backward, matrix products and attention only.

    source   PaLM, appendix B: 6 N + 12 L H Q T. N is every weight of a matrix product, the head also when it is tied,
             and no lookup table; of experts, the share that a token visits. Layers without attention have no scores, and the
             scan of a state-space layer counts as the products with its matrices do
    """
    weights = sum(weights for _, _, weights in _products(model))
    return 6.0 * weights + 12.0 * _attention_width(model.config) * sequence_length


def spared_flops_per_token(model: PreTrainedModel, sequence_length: int) -> float:
    """Those of `flops_per_token` that are not done because something is frozen.

    Of a frozen matrix its own gradient is spared, and below all that is trained the whole backward pass: of whole blocks, and of the
    head where nothing else is trained. What may be spared within a block that is trained in part is not counted.
    """
    stations = _stations(model)
    first = min(stations[name] for name, parameter in model.named_parameters() if parameter.requires_grad)
    spared = 0.0
    for name, parameter, weights in _products(model):
        station = _HEAD if name == "head" else stations[name]
        is_below = station < first or station == first == _HEAD
        spared += 2.0 * weights * ((not parameter.requires_grad) + is_below)
    blocks = set(stations.values()) - {_EMBEDDINGS, _AFTER_BLOCKS, _HEAD}
    below = sum(station < first for station in blocks) / max(len(blocks), 1)
    return spared + 8.0 * below * _attention_width(model.config) * sequence_length


_EMBEDDINGS, _AFTER_BLOCKS, _HEAD = -1, 2**30, 2**30 + 1
"""Stations of a token besides the blocks, whose numbers are theirs, in its order."""


def _stations(model: PreTrainedModel) -> dict[str, int]:
    """Where a token meets each parameter; one that is embedding and head, where it comes first."""
    tables, head = _tables(model), model.get_output_embeddings()
    stations = {}
    for name, parameter in model.named_parameters():
        number = re.search(r"\.(\d+)\.", name)
        is_head = head is not None and parameter is head.weight
        behind = _HEAD if is_head else _AFTER_BLOCKS
        stations[name] = _EMBEDDINGS if id(parameter) in tables else int(number[1]) if number else behind
    return stations


def _products(model: PreTrainedModel) -> Iterator[tuple[str, nn.Parameter, float]]:
    """(name, matrix, weights that a token meets) of every product with a matrix; `head` is one that is tied to the embeddings."""
    tables, head = _tables(model), model.get_output_embeddings()
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2 and id(parameter) not in tables and not name.endswith("bias"):
            yield name, parameter, parameter.numel() * _active_share(name, parameter, model)
    if head is not None and id(head.weight) in tables:
        yield "head", head.weight, float(head.weight.numel())


def _active_share(name: str, parameter: nn.Parameter, model: nn.Module) -> float:
    config = getattr(model, "config", None)
    return active_share(name, parameter.shape, lambda field: getattr(config, field, None))


def _tables(model: nn.Module) -> dict[int, nn.Parameter]:
    """The parameters of lookup tables, by identity."""
    return {id(m.weight): m.weight for m in model.modules() if isinstance(m, nn.Embedding)}


def _attention_width(config: PretrainedConfig) -> int:
    """Layers with attention x heads x size of a head; 0 for a model without attention."""
    layers, heads = getattr(config, "num_hidden_layers", None), getattr(config, "num_attention_heads", None)
    if not isinstance(layers, int) or not isinstance(heads, int):
        return 0
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    if isinstance(kinds, list) and len(kinds) == layers:
        layers = sum("attention" in kind and not kind.startswith("linear") for kind in kinds)
    return layers * heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)


def shapes_of_model(model: PreTrainedModel) -> Shapes:
    """A model as plain data; it may be on the meta device."""
    tables, head, config = _tables(model), model.get_output_embeddings(), model.config
    layers, width = getattr(config, "num_hidden_layers", None), _attention_width(config)
    layers = layers if isinstance(layers, int) else 0
    return Shapes(
        config.model_type,
        tuple(
            Weight(
                name,
                tuple(parameter.shape),
                is_table=id(parameter) in tables,
                is_head=head is not None and parameter is head.weight,
                share=_active_share(name, parameter, model),
            )
            for name, parameter in model.named_parameters()
        ),
        num_layers=layers,
        hidden=config.hidden_size,
        attention_width=width,
        query_width=width // max(layers, 1),
        scores_kept=2 * config.num_attention_heads if getattr(config, "attn_logit_softcapping", None) else 0,
    )
