"""The loss on held-out sequences: each token counts once, whoever computed it."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from trainer import beats
from trainer.errors import DataError


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ValidationLoss:
    """A mean over held-out tokens of all ranks."""

    loss: float
    """Nats per token."""
    num_tokens: int

    def bits_per_byte(self, num_bytes: int) -> float:
        """Bits a byte of text, which compare across tokenizers: loss x tokens / (bytes x ln 2)."""
        return self.loss * self.num_tokens / (num_bytes * math.log(2))


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the mode that was on comes back, also after an error."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


@contextlib.contextmanager
def one_thread() -> Iterator[int]:
    """Computes on one CPU thread for a while; gives how many there were."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield num_threads
    finally:
        torch.set_num_threads(num_threads)


def validation_loss(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], reduce: Callable[[Tensor], Tensor]
) -> ValidationLoss:
    """The mean loss over `batches` of every rank, weighted by tokens.

    model    called as `model(inputs, labels=labels, reduction="sum")`, gives [loss sum in nats, number of labels]
    batches  this rank's (inputs, labels), both [B, T], on the model's device; a rank may have none
    reduce   sums a tensor over the ranks
    raises   DataError when no rank had a label

    Sums are taken in float64 in the order of the batches, so the same split gives the same bits.
    """
    device = next(model.parameters()).device
    totals = torch.zeros(2, dtype=torch.float64, device=device)
    with evaluating(model):
        for inputs, labels in batches:
            totals += model(inputs, labels=labels, reduction="sum").double()
            beats.beat()
    loss_sum, num_tokens = reduce(totals).tolist()
    if num_tokens == 0:
        raise DataError(
            "no held-out token to evaluate on: the validation data has no whole sequence; add data to data.validation, "
            "or shorten sequence_length"
        )
    return ValidationLoss(loss=loss_sum / num_tokens, num_tokens=int(num_tokens))
