"""How much arithmetic a token costs, and how much a GPU could do: the two halves of MFU.

Convention: PaLM's (Chowdhery et al. 2022, appendix B). Six operations per token for each weight of a matrix product
(two forward, four backward), and 12 x layers x attention width x sequence length for the attention scores, the causal
half not subtracted. Recomputation under gradient checkpointing does not count: it is not progress.
"""

import dataclasses
import re
from collections.abc import Iterator

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from trainer.experts import active_share
from trainer.text import count


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ParameterCounts:
    """Numbers of parameters; one that is tied counts once."""

    total: int
    non_embedding: int
    """Without the tables that tokens and positions are looked up in; the head is one of them where it is tied."""
    active: int
    """Those that a token meets: of experts, as many as are drawn for it."""

    @property
    def words(self) -> str:
        """How many, for people."""
        active = f", {count(self.active)} active a token" if self.active < self.total else ""
        return f"{count(self.total)} parameters ({count(self.non_embedding)} without embeddings{active})"


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


_TERA = 1e12

# Dense peaks in TFLOP/s from NVIDIA's data sheets, without sparsity, fp32 accumulation where the sheet tells it apart.
# The first entry whose words are all in the device's name counts, so the special stands before the general.
_SHEETS: tuple[tuple[str, dict[str, float]], ...] = (
    ("B200", {"bf16": 2250, "fp16": 2250, "fp8": 4500, "tf32": 1125, "no": 75}),
    ("H200 NVL", {"bf16": 835, "fp16": 835, "fp8": 1671, "tf32": 418, "no": 60}),
    ("H200", {"bf16": 989, "fp16": 989, "fp8": 1979, "tf32": 494, "no": 67}),
    ("GH200", {"bf16": 989, "fp16": 989, "fp8": 1979, "tf32": 494, "no": 67}),
    ("H100 NVL", {"bf16": 835, "fp16": 835, "fp8": 1671, "tf32": 418, "no": 60}),
    ("H100 PCIE", {"bf16": 756, "fp16": 756, "fp8": 1513, "tf32": 378, "no": 51}),
    ("H100", {"bf16": 989, "fp16": 989, "fp8": 1979, "tf32": 494, "no": 67}),
    ("A100", {"bf16": 312, "fp16": 312, "tf32": 156, "no": 19.5}),
    ("L40S", {"bf16": 362, "fp16": 362, "fp8": 733, "tf32": 183, "no": 91.6}),
    ("L40", {"bf16": 181, "fp16": 181, "fp8": 362, "tf32": 90.5, "no": 90.5}),
    ("L4", {"bf16": 121, "fp16": 121, "fp8": 242, "tf32": 60, "no": 30.3}),
    ("A40", {"bf16": 149.7, "fp16": 149.7, "tf32": 74.8, "no": 37.4}),
    ("A30", {"bf16": 165, "fp16": 165, "tf32": 82, "no": 10.3}),
    ("A10", {"bf16": 125, "fp16": 125, "tf32": 62.5, "no": 31.2}),
    ("RTX A6000", {"bf16": 154.8, "fp16": 154.8, "tf32": 77.4, "no": 38.7}),
    ("RTX 4090", {"bf16": 165.2, "fp16": 165.2, "fp8": 330.3, "tf32": 82.6, "no": 82.6}),
    ("RTX 3090", {"bf16": 71, "fp16": 71, "tf32": 35.6, "no": 35.6}),
    ("V100 PCIE", {"fp16": 112, "no": 14}),
    ("V100", {"fp16": 125, "no": 15.7}),
    ("T4", {"fp16": 65, "no": 8.1}),
)
_PEAKS = tuple((frozenset(words.split()), peaks) for words, peaks in _SHEETS)
_OTHER_CHIPS = {"LAPTOP", "MIG", "D", "TI", "SUPER", "MAXQ"}


def peak_flops(device_name: str, precision: str) -> float | None:
    """Dense peak of a GPU in FLOP/s, or None when the GPU is not in the table or cannot do this precision.

    device_name  as torch.cuda.get_device_name says it
    precision    `bf16`, `fp16`, `fp8`, `tf32` or `no`; `no` means true fp32 outside the tensor cores, which is what
                 torch computes unless tf32 is allowed
    source       NVIDIA data sheets of each product, columns without sparsity
    """
    words = set(re.split(r"[^A-Z0-9]+", device_name.upper()))
    if words & _OTHER_CHIPS:
        return None
    for needed, peaks in _PEAKS:
        if needed <= words:
            return peaks[precision] * _TERA if precision in peaks else None
    return None
