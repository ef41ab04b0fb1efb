"""The output head and its loss, some tokens at a time: the logits of a whole micro-batch never exist.

At a vocabulary of 50,304 the logits of 16 x 1,024 tokens are 3.3 GB in fp32, and the plain way holds them about three
times (logits, log-probabilities, their gradient). Here the forward pass walks over the tokens in chunks, and for each

    logits = hidden @ weight.T        in the compute precision (autocast's, where it is on); a family's factor or cap in fp32
    log-probabilities                 in fp32, padding ids at minus infinity
    loss                              summed in fp64
    gradient of the logits            softmax - one hot, in place
    gradients of hidden and weight    accumulated; the weight's in fp32

so that one buffer of chunk x vocabulary serves all chunks, and the backward pass only scales what is there. What happens to
the logits is a pass for each operation, or one compiled kernel (fused.py); head_way.py chooses.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from trainer.contracts import IGNORED_LABEL
from trainer.determinism import any_order
from trainer.model.after_head import NOTHING, AfterHead
from trainer.model.fused import NO_TARGET, compiled_log_likelihoods

CPU_CHUNK_BYTES = 16e6
CUDA_CHUNK_BYTES = 2e9
CUDA_CHUNK_SHARE = 1 / 40
MIN_CHUNK_TOKENS = 256

WIDE_PRODUCTS = ("cuda",)
"""Devices on which a product of half precision can be left in the fp32 that it was summed in."""

FP16_SCALE = 2.0**15
"""Lifts the gradient of the logits, which lies between -1 and 1, into what fp16 can hold: down to 2^-39 instead of 2^-24."""


def chunk_tokens_of(vocabulary: int, budget: float, bytes_per_logit: int) -> int:
    """Tokens whose logits fill about the budget, a multiple of 64.

    Never below 256, because each chunk reads and writes the whole gradient of the weight: at [50304, 768] on two cores,
    64 tokens a chunk took 2.2 s for 1,024 tokens, 128 took 1.8, 256 took 1.5 and 512 took 1.4.
    """
    return max(MIN_CHUNK_TOKENS, int(budget / (bytes_per_logit * vocabulary)) // 64 * 64)


def default_chunk_tokens(vocabulary: int, device: torch.device, bytes_per_logit: int = 4) -> int:
    """Tokens whose logits fill the budget of the device: cache-sized on a CPU; on a GPU 2 GB, or a fortieth of its memory.

    Of its whole memory and not of what is free: a replay of a step must find the chunks that the step had.
    """
    if device.type != "cuda":
        return chunk_tokens_of(vocabulary, CPU_CHUNK_BYTES, 4)
    whole = torch.cuda.get_device_properties(device).total_memory
    return chunk_tokens_of(vocabulary, min(CUDA_CHUNK_BYTES, CUDA_CHUNK_SHARE * whole), bytes_per_logit)


def compute_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """The precision of the head's matrix products: autocast's where it is on, else that of the operands.

    For fp16 it is bf16 where a GPU has that, since its range needs no scale, and fp32 on a CPU, which computes nothing in fp16.
    """
    device = hidden.device.type
    if not torch.is_autocast_enabled(device):
        return torch.promote_types(hidden.dtype, weight.dtype)
    autocast = torch.get_autocast_dtype(device)
    if autocast != torch.float16:
        return autocast
    if device != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


@torch.compiler.disable
def chunked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    vocab_size: int,
    bias: Tensor | None = None,
    chunk_tokens: int | None = None,
    fused: bool = False,
    after: AfterHead = NOTHING,
) -> tuple[Tensor, Tensor]:
    """The summed cross-entropy of `hidden @ weight.T (+ bias)` against `labels`, and how many labels counted.

    hidden        [N, D], any float type
    weight        [Vp, D], Vp >= vocab_size; ids from `vocab_size` on are padding and have no probability
    labels        [N] int64, each below `vocab_size` or IGNORED_LABEL
    bias          [Vp]
    chunk_tokens  tokens whose logits exist at one time; the result depends on it in the last bits only
    fused         one compiled kernel over the logits of a chunk, all chunks of one shape: the last is filled up with ignored
                  rows, so that nothing is compiled a second time; equal to the passes within the rounding of fp32
    after         what the family does to its logits before the loss
    returns       the sum in nats and the count, both 0-d fp32 on the device of `hidden`

    Gradients of all three inputs are computed in the forward pass, so it costs as much as both passes of the plain way,
    and the backward pass nothing. Under `torch.no_grad` only the loss is computed. Not traced by torch.compile: a
    compiled model breaks its graph here, at the end, and keeps its own memory plan.
    """
    count = (labels != IGNORED_LABEL).sum(dtype=torch.float32)
    assert hidden.ndim == 2 and labels.shape == hidden.shape[:1] and vocab_size <= weight.shape[0]
    chunk = chunk_tokens or default_chunk_tokens(weight.shape[0], hidden.device)
    differentiable = [t if t is not None and t.requires_grad else None for t in (hidden, weight, bias)]
    needs = tuple(t is not None and torch.is_grad_enabled() for t in differentiable)
    dtype = compute_dtype(hidden, weight)
    if fused and (missing := -hidden.shape[0] % chunk):
        hidden, labels = F.pad(hidden, (0, 0, 0, missing)), F.pad(labels, (0, missing), value=IGNORED_LABEL)
    way = _Way(vocab_size, chunk, dtype, needs, fused, after)
    with torch.autocast(hidden.device.type, enabled=False):
        return _ChunkedCrossEntropy.apply(hidden, weight, bias, labels, way), count


@dataclass(frozen=True)
class _Way:
    """What the chunks are computed by, besides the operands."""

    vocab_size: int
    chunk_tokens: int
    dtype: torch.dtype
    """Of the matrix products."""
    needs: tuple[bool, ...]
    """Whether the gradients of hidden, weight and bias are wanted."""
    fused: bool
    after: AfterHead


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The loss and, in the same pass, its gradients; backward scales them in place."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, way: _Way
    ) -> Tensor:
        walk = _Walk(hidden, weight, bias, way)
        loss = torch.zeros((), dtype=torch.float64, device=hidden.device)
        for start in range(0, hidden.shape[0], way.chunk_tokens):
            loss += walk.chunk(start, labels[start : start + way.chunk_tokens])
        ctx.gradients = walk.gradients()
        return loss.float()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        # Scaled in place, since fresh memory for the weight's gradient costs more than the arithmetic: hence only once.
        assert ctx.gradients is not None, "the gradients of a chunked loss are used up by its first backward pass"
        gradients, ctx.gradients = ctx.gradients, None
        return *(None if g is None else g.mul_(grad_output.to(g.dtype)) for g in gradients), None, None


class _Walk:
    """What one pass over the chunks carries: the operands in the compute precision, the buffers, the gradients."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, way: _Way) -> None:
        dtype = way.dtype
        self.source, self.weight_dtype, self.way = hidden, weight.dtype, way
        self.weight = weight.detach().to(dtype)
        self.bias = None if bias is None else bias.detach()
        rows, width = min(way.chunk_tokens, hidden.shape[0]), weight.shape[0]
        # fp64 stays fp64, so that a reference can be computed with this very code; everything else is exact in fp32.
        self.exact = torch.float64 if dtype == torch.float64 else torch.float32
        self.scale = FP16_SCALE if dtype == torch.float16 else 1.0
        # What the products write and read, and where the passes of single operations compute.
        self.low = torch.empty(rows, width, dtype=dtype, device=hidden.device)
        self.logits = self.low if dtype == self.exact or way.fused else torch.empty_like(self.low, dtype=self.exact)
        has_slopes = any(way.needs) and not way.fused and way.after.cap is not None
        self.slopes = torch.empty_like(self.logits) if has_slopes else None
        self.grad_hidden = torch.empty_like(hidden) if way.needs[0] else None
        self.grad_weight: Tensor | None = None
        self.product: Tensor | None = None
        self.grad_bias = torch.zeros_like(bias, dtype=self.exact) if way.needs[2] else None

    def chunk(self, start: int, labels: Tensor) -> Tensor:
        """The summed loss (fp64) of the tokens from `start` on; their gradients join those of earlier chunks."""
        size = labels.shape[0]
        ignored = (labels == IGNORED_LABEL).unsqueeze(1)
        # Ignored rows are struck out of the thin factor before the product: cheaper than out of the wide one after it,
        # and what stands there may even be infinite.
        hidden = self.source.detach()[start : start + size].to(self.way.dtype).masked_fill(ignored, 0.0)
        torch.mm(hidden, self.weight.t(), out=self.low[:size])
        evaluate = self._in_one_kernel if self.way.fused else self._in_passes
        log_likelihood = evaluate(labels.unsqueeze(1), ignored)
        if any(self.way.needs):
            self._accumulate(start, hidden, ignored)
        return -log_likelihood.squeeze(1).sum(dtype=torch.float64)

    def _in_one_kernel(self, labels: Tensor, ignored: Tensor) -> Tensor:
        """The log-probabilities of a chunk's labels [R, 1], 0 where ignored; its logits become their scaled gradient."""
        targets = labels.masked_fill(ignored, NO_TARGET).int()
        scale = self.scale if any(self.way.needs) else None
        after = () if self.way.after.is_nothing else (self.way.after.factor, self.way.after.cap)
        log_likelihood = compiled_log_likelihoods()(self.low, targets, self.bias, self.way.vocab_size, scale, *after)
        if self.grad_bias is not None:
            self.grad_bias += self.low.sum(0, dtype=self.exact)
        return log_likelihood

    def _in_passes(self, labels: Tensor, ignored: Tensor) -> Tensor:
        """The same, an operation after the other over buffers that are there."""
        size = labels.shape[0]
        logits = self.logits[:size]
        if self.low is not self.logits:
            logits.copy_(self.low[:size])
        if self.bias is not None:
            logits += self.bias
        slopes = None if self.slopes is None else self.slopes[:size]
        if not self.way.after.is_nothing:
            self.way.after.in_place(logits, slopes)
        logits[:, self.way.vocab_size :] = float("-inf")
        torch.ops.aten._log_softmax.out(logits, -1, False, out=logits)

        targets = labels.masked_fill(ignored, 0)
        log_likelihood = logits.gather(1, targets)
        if any(self.way.needs):
            logits.exp_()
            at_targets = torch.expm1(log_likelihood)
            with any_order():  # one target a row
                logits.scatter_(1, targets, at_targets)
            self.way.after.back_in_place(logits, slopes)
            if self.scale != 1.0:
                logits *= self.scale
            if self.grad_bias is not None:
                self.grad_bias += logits.masked_fill(ignored, 0.0).sum(0)
            if self.low is not self.logits:
                self.low[:size].copy_(logits)
        return log_likelihood.masked_fill(ignored, 0.0)

    def _accumulate(self, start: int, hidden: Tensor, ignored: Tensor) -> None:
        """Adds the gradients of a chunk from that of its logits; the rows of `hidden` that are ignored are zero already."""
        size = hidden.shape[0]
        wide = self.low[:size]
        if self.grad_hidden is not None:
            grad_hidden = self._unscaled(_product(wide, self.weight))
            self.grad_hidden[start : start + size] = grad_hidden.masked_fill_(ignored, 0.0)
        if self.way.needs[1]:
            self._add_to_grad_weight(wide.t(), hidden)

    def _add_to_grad_weight(self, left: Tensor, right: Tensor) -> None:
        """Adds a product to the gradient of the weight: in fp32, whatever the product was computed in."""
        if self.way.dtype == self.exact and self.grad_weight is not None:
            self.grad_weight.addmm_(left, right)
            return
        product = _product(left, right, out=self.product)
        if self.grad_weight is None and product.dtype == self.exact:
            self.grad_weight = product  # and later products get memory of their own
        else:
            self.product = product
            self.grad_weight = product.to(self.exact) if self.grad_weight is None else self.grad_weight.add_(product)

    def _unscaled(self, gradient: Tensor) -> Tensor:
        return gradient if self.scale == 1.0 else gradient.mul_(1 / self.scale)

    def gradients(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients of hidden, weight and bias, in the types of those."""
        weight = None if self.grad_weight is None else self._unscaled(self.grad_weight).to(self.weight_dtype)
        if self.grad_bias is None or self.bias is None:
            return self.grad_hidden, weight, None
        return self.grad_hidden, weight, self._unscaled(self.grad_bias).to(self.bias.dtype)


def _product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """left @ right, in fp32 where WIDE_PRODUCTS spare the rounding; of fp16 always, since scaled gradients may leave its range."""
    if left.dtype in (torch.bfloat16, torch.float16) and left.device.type in WIDE_PRODUCTS:
        return torch.mm(left, right, torch.float32, out=out)
    if left.dtype == torch.float16:
        return torch.mm(left.float(), right.float(), out=out)
    return torch.mm(left, right, out=out)
