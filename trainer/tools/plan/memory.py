"""How much memory one process of a run needs, by part: counted where shapes say it, estimated where kernels decide.

Counted are weights, gradients, moments, snapshots and the head's buffers. What blocks keep for the backward pass is counted by this rule:
a compiled block keeps what goes into each of its products and what comes out of it; the rest is computed again, but for the residual stream
before its norms. Without torch.compile it keeps what each operation needs, up to twice as much.
tests/benchmarks/plan.py holds the sum against the measured peak.
"""

import re
from dataclasses import dataclass

from trainer.config.optimizers import OptimizerSettings, optimizer_entry
from trainer.model.shapes import Shapes, Weight

FP32, HALF = 4, 2

CPU_BASE_BYTES = 0.62e9
"""A process on a CPU that has imported and compiled everything, without a model (measured)."""

GPU_BASE_BYTES = 1.5e9
"""What CUDA, its libraries and the communication between GPUs take of each; not measured here."""

CPU_CHUNK_BYTES, GPU_CHUNK_BYTES, GPU_CHUNK_SHARE, MIN_CHUNK_TOKENS = 16e6, 2e9, 1 / 40, 256
"""As in model/head.py, which imports torch."""

NUM_SLOTS = 2


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What decides about memory besides the model."""

    micro_batch: int
    sequence_length: int
    accumulation: int
    """Micro-batches a step and process."""
    precision: str
    """`no`, `bf16`, `fp16` or `fp8`."""
    is_compiled: bool
    is_checkpointed: bool
    """Whether blocks are computed again in the backward pass."""
    on_cpu: bool
    shards: int = 1
    """Ranks over which weights, gradients and moments are shared out; 1: each rank holds all."""

    @property
    def tokens(self) -> int:
        """Of one micro-batch."""
        return self.micro_batch * self.sequence_length

    @property
    def width(self) -> int:
        """Bytes of a number that a product gives."""
        return FP32 if self.precision == "no" else HALF


@dataclass(frozen=True)
class Memory:
    """Bytes of one process at the fullest moment of a step, by part.

    All gradients count beside all activations, also where a step has one micro-batch and they come as those go: what is freed in small
    pieces is not there for others at once.
    """

    weights: float
    gradients: float
    moments: float
    copies: float
    """Weights in lower precision, and those that a sharded rank has gathered."""
    activations: float
    head: float
    """Logits of a chunk, and gradients of the head; or what the gradient of the embedding takes besides, where that is more."""
    working: float
    """What one block needs while it goes backward."""
    base: float
    """Of the process and its libraries."""
    snapshots: float
    """Of one process that saves, in the machine's memory."""

    @property
    def on_device(self) -> float:
        """What a GPU needs."""
        parts = (self.weights, self.gradients, self.moments, self.copies)
        return sum((*parts, self.activations, self.head, self.working, self.base))


def memory_of(shapes: Shapes, optimizer: OptimizerSettings, setting: Setting, device_bytes: float | None) -> Memory:
    """What one process needs.

    device_bytes  the GPU's memory, by which the head's chunks are chosen; None: not known, or a CPU
    """
    trained = sum(weight.numel for weight in shapes.weights if weight.is_trained)
    total = sum(weight.numel for weight in shapes.weights)
    shards = setting.shards
    weights, gradients = FP32 * total / shards, FP32 * trained / shards
    moments = moment_bytes(shapes, optimizer)
    block = block_bytes(shapes, setting)
    kept = FP32 * shapes.hidden * setting.tokens if setting.is_checkpointed else block
    activations = (
        shapes.num_layers * kept + (block if setting.is_checkpointed else 0) + FP32 * shapes.hidden * setting.tokens
    )
    working = setting.width * setting.tokens * max(_outputs(shapes) / max(shapes.num_layers, 1), shapes.hidden)
    return Memory(
        weights,
        gradients,
        moments / shards,
        _copies(shapes, setting),
        activations,
        max(head_bytes(shapes, setting, device_bytes), _table_bytes(shapes, setting)),
        working,
        CPU_BASE_BYTES if setting.on_cpu else GPU_BASE_BYTES,
        NUM_SLOTS * (FP32 * total + moments),  # rank 0 holds the whole model's, also of one that is sharded
    )


def moment_bytes(shapes: Shapes, settings: OptimizerSettings) -> int:
    """What the optimizer keeps of all that is trained."""
    entry = optimizer_entry(settings.name)
    total = 0
    for weight in shapes.weights:
        if weight.is_trained:
            algorithm = entry.hyperparameters(settings, group_of(weight))["algorithm"]
            total += optimizer_entry(algorithm).state_bytes(_Sized(weight))  # type: ignore[arg-type]
    return total


def group_of(weight: Weight) -> str:
    """As optim/groups.py names the groups of a model's parameters."""
    if len(weight.shape) < 2:
        return "vectors"
    if weight.is_table or weight.is_head:
        return "embeddings"
    return "hidden" if len(weight.shape) == 2 else "matrices"


class _Sized:
    """A weight where a tensor is asked for its size."""

    def __init__(self, weight: Weight) -> None:
        self._weight = weight

    def numel(self) -> int:
        return self._weight.numel

    def element_size(self) -> int:
        return FP32


def block_bytes(shapes: Shapes, setting: Setting) -> float:
    """What a block keeps of a micro-batch for the backward pass, where nothing is computed again; a mean over the blocks."""
    blocks, half = max(shapes.num_layers, 1), setting.width == HALF
    outputs, back = _outputs(shapes) / blocks, _into_residual(shapes) / blocks
    # The residual stream before each of two norms, in fp32; what they give, in place of what goes back into the stream.
    compiled = FP32 * (2 * shapes.hidden + shapes.kept_by_norms) + setting.width * (outputs + back)
    compiled += setting.width * shapes.scores_kept * setting.sequence_length
    if setting.is_compiled:
        return setting.tokens * compiled
    casts = 6 * shapes.hidden if half else 0  # of one tensor, for each product that reads it
    more = 2 * FP32 * shapes.hidden + casts + 2 * setting.width * max(0.0, back - shapes.query_width)
    return setting.tokens * (compiled + more)


def _outputs(shapes: Shapes) -> float:
    """Numbers of one token that the products of all blocks give."""
    return sum(_widths(weight)[0] for weight in _products_of_blocks(shapes))


def _into_residual(shapes: Shapes) -> float:
    """Numbers of one token that go into the products whose result is added to the residual stream, of all blocks."""
    return sum(_widths(weight)[1] for weight in _products_of_blocks(shapes) if _BACK.search(weight.name))


_BACK = re.compile(r"\.(o_proj|out_proj|c_proj|dense|dense_4h_to_h|down_proj|fc2|wo|w2|fc_out|proj)(\.weight)?$")
_TRANSPOSED = re.compile(r"\.c_(attn|proj|fc)\.")


def _products_of_blocks(shapes: Shapes) -> list[Weight]:
    return [weight for weight in shapes.block_weights if weight.is_product and re.search(r"\.\d+\.", weight.name)]


def _widths(weight: Weight) -> tuple[float, float]:
    """Numbers of one token that a product gives, and that go into it; of experts, those of all that a token visits."""
    if len(weight.shape) == 3 and weight.shape[1] > 1:  # stacked experts
        visited = weight.shape[0] * weight.share
        return visited * weight.shape[1], visited * weight.shape[2]
    outward, inward = weight.shape[0], weight.shape[1]
    return (inward, outward) if _TRANSPOSED.search(weight.name) else (outward, inward)


def _table_bytes(shapes: Shapes, setting: Setting) -> float:
    """Gradients of the embedding besides the one that is kept: a micro-batch's own, and the head's where it is tied to it."""
    times = int(shapes.head.is_table) + int(setting.accumulation > 1)
    return FP32 * times * shapes.head.numel


def head_bytes(shapes: Shapes, setting: Setting, device_bytes: float | None) -> float:
    """What the head and its loss take: the buffers of a chunk, and gradients that live until the backward pass."""
    rows, hidden = shapes.head.shape[0], shapes.head.shape[1]
    budget = CPU_CHUNK_BYTES if setting.on_cpu else min(GPU_CHUNK_BYTES, GPU_CHUNK_SHARE * (device_bytes or 80e9))
    fused = setting.is_compiled and not setting.on_cpu
    per_logit = setting.width if fused or setting.width == FP32 else setting.width + FP32
    tokens = max(MIN_CHUNK_TOKENS, int(budget / ((FP32 if setting.on_cpu else per_logit) * rows)) // 64 * 64)
    buffers = min(tokens, setting.tokens) * rows * per_logit
    if setting.width == HALF:
        buffers += rows * hidden * (HALF + FP32)  # the weight in that precision, and a chunk's product
    return buffers + FP32 * (rows * hidden + setting.tokens * hidden)


def _copies(shapes: Shapes, setting: Setting) -> float:
    """Weights that are there a second time."""
    products = sum(weight.numel for weight in shapes.block_weights if weight.is_product)
    copies = 0.0
    if setting.precision == "fp8":
        copies += HALF * products  # by rows and by columns, a byte each
    elif setting.width == HALF and not setting.is_compiled:
        copies += HALF * products  # autocast's, which live as long as the graph
    if setting.shards > 1:
        blocks = sum(weight.numel for weight in shapes.block_weights) / max(shapes.num_layers, 1)
        outer = sum(weight.numel for weight in shapes.weights if weight.is_table or weight.is_head)
        copies += setting.width * (2 * blocks + outer)  # two blocks at a time, and the first and last layers throughout
    return copies
