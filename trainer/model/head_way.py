"""Which way a run's head goes over the logits of a chunk: one compiled kernel or passes of single operations; found before the first step."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from trainer.model.head import chunked_cross_entropy, compute_dtype, default_chunk_tokens

log = logging.getLogger(__name__)

FUSED_DEVICES = ("cuda",)
"""Where one kernel is faster. On a CPU the passes are: over [256, 50304] in fp32 on two cores 37 ms, the compiled function 80 ms."""

COMPILER = "inductor"
"""The backend of torch.compile that makes a kernel of a function; others run its operations one by one."""


@dataclass(frozen=True)
class HeadWay:
    """How the loss of a run is computed; it decides about the last bits."""

    fused: bool
    dtype: torch.dtype
    """Of the matrix products."""
    chunk_tokens: int

    def __str__(self) -> str:
        how = "one compiled kernel" if self.fused else "passes"
        return f"{how}, {str(self.dtype).removeprefix('torch.')}, {self.chunk_tokens} tokens a chunk"


def find_head_way(
    model: PreTrainedModel,
    num_tokens: int,
    *,
    compiler: str,
    autocast: Callable[[], AbstractContextManager],
    gather: Callable[[str | None], list[str | None]],
) -> HeadWay | None:
    """The way of every rank of a run; None where it is the default of `chunked_cross_entropy`, or the head is a plain one.

    num_tokens  of a micro-batch
    compiler    the torch.compile backend of the run, `no` for none
    autocast    the context in which the model is called
    gather      gives all ranks what each of them says
    """
    weight = model.get_output_embeddings().weight
    if weight.device.type not in FUSED_DEVICES or model.head_reason is not None:
        return None
    with autocast():
        dtype = compute_dtype(weight, weight)
    most = default_chunk_tokens(weight.shape[0], weight.device, dtype.itemsize)
    fused = HeadWay(True, dtype, equal_chunks(num_tokens, most))
    why_not = _unfit(model, dtype, compiler)
    is_meant = why_not is not None
    if why_not is None:
        why_not = _failure(model, fused, autocast)
    reasons = [reason for reason in gather(why_not) if reason]
    if not reasons:
        log.info("head and loss: %s", fused)
        return fused
    # The passes have a buffer of their own in fp32, and another for the slopes of a soft cap.
    bytes_per_logit = dtype.itemsize + (4 if dtype.itemsize < 4 else 0) + (0 if model.after_head.cap is None else 4)
    passes = HeadWay(False, dtype, default_chunk_tokens(weight.shape[0], weight.device, bytes_per_logit))
    (log.info if is_meant else log.warning)("head and loss: %s, which is slower, because %s", passes, reasons[0])
    return passes


def equal_chunks(num_tokens: int, most: int) -> int:
    """Tokens of each of as few chunks as hold `num_tokens`, a multiple of 64: since all have one shape, the last is filled up."""
    number = -(-num_tokens // most)
    return -(-num_tokens // (64 * number)) * 64


def _unfit(model: PreTrainedModel, dtype: torch.dtype, compiler: str) -> str | None:
    """Why one kernel is not for this run, whatever its compiler can do; None when it is."""
    if compiler != COMPILER:
        return "torch.compile is off" if compiler == "no" else f"torch.compile is by {compiler}"
    if dtype.itemsize < 4 and getattr(model.get_output_embeddings(), "bias", None) is not None:
        name = str(dtype).removeprefix("torch.")
        return f"the gradient of the head's bias would be summed of what {name} has rounded"
    return None


def _failure(model: PreTrainedModel, way: HeadWay, autocast: Callable[[], AbstractContextManager]) -> str | None:
    """Why the compiler cannot make the kernel here, found by computing a chunk with and without gradients; None when it can.

    raises  torch.OutOfMemoryError, since the steps would need that memory too
    """
    head = model.get_output_embeddings()
    device, width = head.weight.device, head.weight.shape[1]
    hidden = torch.zeros(way.chunk_tokens, width, device=device, requires_grad=True)
    labels = torch.zeros(way.chunk_tokens, dtype=torch.int64, device=device)
    facts = {"vocab_size": model.real_vocab_size, "bias": getattr(head, "bias", None), "after": model.after_head}
    try:
        for with_gradients in (True, False):
            with torch.set_grad_enabled(with_gradients), autocast():
                chunked_cross_entropy(hidden, head.weight, labels, **facts, chunk_tokens=way.chunk_tokens, fused=True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # what the compilers of torch raise, and what a kernel that is made does
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        return f"compiling it failed ({type(error).__name__}: {said[:200]})"
    return None
