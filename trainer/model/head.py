"""The output head and its loss, some tokens at a time: the logits of a whole micro-batch never exist.

At a vocabulary of 50,304 the logits of 16 x 1,024 tokens are 3.3 GB in fp32, and the plain way holds them about three
times (logits, log-probabilities, their gradient). Here the forward pass walks over the tokens in chunks, and for each

    logits = hidden @ weight.T        in the compute precision (autocast's, where it is on)
    log-probabilities                 in fp32, in place, padding ids at minus infinity
    loss                              summed in fp64
    gradient of the logits            softmax - one hot, in place
    gradients of hidden and weight    accumulated; the weight's in fp32

so that one buffer of chunk x vocabulary serves all chunks, and the backward pass only scales what is there.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from trainer.determinism import any_order

IGNORED = -100
"""The label of a position that has no target: it adds nothing to the loss, to its count or to a gradient."""

CPU_CHUNK_BYTES = 16e6
CUDA_CHUNK_BYTES = 256e6
MIN_CHUNK_TOKENS = 256


def default_chunk_tokens(vocabulary: int, device: torch.device) -> int:
    """Tokens whose fp32 logits fill about the budget of the device: cache-sized on a CPU, busy-sized on a GPU.

    Never below 256, because each chunk reads and writes the whole gradient of the weight: at [50304, 768] on two cores,
    64 tokens a chunk took 2.2 s for 1,024 tokens, 128 took 1.8, 256 took 1.5 and 512 took 1.4.
    """
    budget = CUDA_CHUNK_BYTES if device.type == "cuda" else CPU_CHUNK_BYTES
    return max(MIN_CHUNK_TOKENS, int(budget / (4 * vocabulary)) // 64 * 64)


def compute_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """The precision of the head's matrix products: autocast's where it is on, else that of the operands.

    Never fp16: gradients of the logits are probabilities, most of them below what fp16 can hold, and they are stored here
    before the loss scale could lift them.
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        autocast = torch.get_autocast_dtype(device)
        return torch.float32 if autocast == torch.float16 else autocast
    return torch.promote_types(hidden.dtype, weight.dtype)


@torch.compiler.disable
def chunked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    vocab_size: int,
    bias: Tensor | None = None,
    chunk_tokens: int | None = None,
    ignore_index: int = IGNORED,
) -> tuple[Tensor, Tensor]:
    """The summed cross-entropy of `hidden @ weight.T (+ bias)` against `labels`, and how many labels counted.

    hidden        [N, D], any float type
    weight        [Vp, D], Vp >= vocab_size; ids from `vocab_size` on are padding and have no probability
    labels        [N] int64, each below `vocab_size` or `ignore_index`
    bias          [Vp]
    chunk_tokens  tokens whose logits exist at one time; the result depends on it in the last bits only
    returns       the sum in nats and the count, both 0-d fp32 on the device of `hidden`

    Gradients of all three inputs are computed in the forward pass, so it costs as much as both passes of the plain way,
    and the backward pass nothing. Under `torch.no_grad` only the loss is computed. Not traced by torch.compile: a
    compiled model breaks its graph here, at the end, and keeps its own memory plan.
    """
    assert hidden.ndim == 2 and labels.shape == hidden.shape[:1] and vocab_size <= weight.shape[0]
    chunk = chunk_tokens or default_chunk_tokens(weight.shape[0], hidden.device)
    differentiable = [t if t is not None and t.requires_grad else None for t in (hidden, weight, bias)]
    needs = tuple(t is not None and torch.is_grad_enabled() for t in differentiable)
    dtype = compute_dtype(hidden, weight)
    with torch.autocast(hidden.device.type, enabled=False):
        loss = _ChunkedCrossEntropy.apply(hidden, weight, bias, labels, vocab_size, chunk, ignore_index, dtype, needs)
    return loss, (labels != ignore_index).sum(dtype=torch.float32)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The loss and, in the same pass, its gradients; backward scales them in place."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        vocab_size: int,
        chunk_tokens: int,
        ignore_index: int,
        dtype: torch.dtype,
        needs: tuple[bool, bool, bool],
    ) -> Tensor:
        walk = _Walk(hidden, weight, bias, vocab_size, chunk_tokens, dtype, needs)
        loss = torch.zeros((), dtype=torch.float64, device=hidden.device)
        for start in range(0, hidden.shape[0], chunk_tokens):
            loss += walk.chunk(start, labels[start : start + chunk_tokens], ignore_index)
        ctx.gradients = walk.gradients()
        return loss.float()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        # Scaled in place, since fresh memory for the weight's gradient costs more than the arithmetic: hence only once.
        assert ctx.gradients is not None, "the gradients of a chunked loss are used up by its first backward pass"
        gradients, ctx.gradients = ctx.gradients, None
        return *(None if g is None else g.mul_(grad_output.to(g.dtype)) for g in gradients), *(None,) * 6


class _Walk:
    """What one pass over the chunks carries: the operands in the compute precision, the buffers, the gradients."""

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        vocab_size: int,
        chunk_tokens: int,
        dtype: torch.dtype,
        needs: tuple[bool, bool, bool],
    ) -> None:
        self.source, self.weight_dtype, self.vocab_size, self.dtype, self.needs = (
            hidden,
            weight.dtype,
            vocab_size,
            dtype,
            needs,
        )
        self.weight = weight.detach().to(dtype)
        self.bias = None if bias is None else bias.detach()
        rows, width = min(chunk_tokens, hidden.shape[0]), weight.shape[0]
        # fp64 stays fp64, so that a reference can be computed with this very code; everything else is exact in fp32.
        self.exact = torch.float64 if dtype == torch.float64 else torch.float32
        self.logits = torch.empty(rows, width, dtype=self.exact, device=hidden.device)
        self.low = None if dtype == self.exact else torch.empty(rows, width, dtype=dtype, device=hidden.device)
        self.grad_hidden = torch.empty_like(hidden) if needs[0] else None
        self.grad_weight: Tensor | None = None
        self.product: Tensor | None = None
        self.grad_bias = torch.zeros_like(bias, dtype=self.exact) if needs[2] else None

    def chunk(self, start: int, labels: Tensor, ignore_index: int) -> Tensor:
        """The summed loss (fp64) of the tokens from `start` on; their gradients join those of earlier chunks."""
        size = labels.shape[0]
        ignored = labels == ignore_index
        # Ignored rows are struck out of the thin factor before the product: cheaper than out of the wide one after it,
        # and what stands there may even be infinite.
        hidden = self.source.detach()[start : start + size].to(self.dtype).masked_fill(ignored.unsqueeze(1), 0.0)
        logits = self.logits[:size]
        self._product(hidden, size)
        if self.bias is not None:
            logits += self.bias
        logits[:, self.vocab_size :] = float("-inf")
        torch.ops.aten._log_softmax.out(logits, -1, False, out=logits)

        targets = labels.masked_fill(ignored, 0).unsqueeze(1)
        log_likelihood = logits.gather(1, targets)
        if any(self.needs):
            logits.exp_()
            at_targets = torch.expm1(log_likelihood)
            with any_order():  # one target a row
                logits.scatter_(1, targets, at_targets)
            self._accumulate(start, hidden, ignored.unsqueeze(1))
        return -log_likelihood.squeeze(1).masked_fill(ignored, 0.0).sum(dtype=torch.float64)

    def _product(self, hidden: Tensor, size: int) -> None:
        if self.low is None:
            torch.mm(hidden, self.weight.t(), out=self.logits[:size])
        else:
            torch.mm(hidden, self.weight.t(), out=self.low[:size])
            self.logits[:size].copy_(self.low[:size])

    def _accumulate(self, start: int, hidden: Tensor, ignored: Tensor) -> None:
        """Adds a chunk's gradients; the rows of `hidden` that are ignored are zero already."""
        size = hidden.shape[0]
        wide = self.logits[:size]
        if self.grad_bias is not None:
            self.grad_bias += wide.masked_fill(ignored, 0.0).sum(0)
        if self.low is not None:
            wide = self.low[:size].copy_(wide)
        if self.grad_hidden is not None:
            self.grad_hidden[start : start + size] = torch.mm(wide, self.weight).masked_fill_(ignored, 0.0)
        if self.needs[1]:
            self._add_to_grad_weight(wide.t(), hidden)

    def _add_to_grad_weight(self, left: Tensor, right: Tensor) -> None:
        """Adds a product to the gradient of the weight: in fp32, whatever the product was computed in."""
        if self.low is not None:
            self.product = torch.mm(left, right, out=self.product)
            self.grad_weight = (
                self.product.to(self.exact) if self.grad_weight is None else self.grad_weight.add_(self.product)
            )
        elif self.grad_weight is None:
            self.grad_weight = torch.mm(left, right)
        else:
            self.grad_weight.addmm_(left, right)

    def gradients(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients of hidden, weight and bias, in the types of those."""
        weight = self.grad_weight
        bias = None if self.grad_bias is None or self.bias is None else self.grad_bias.to(self.bias.dtype)
        return self.grad_hidden, None if weight is None else weight.to(self.weight_dtype), bias
