"""Validation loss: weighted by tokens, exact in its sums, and without a trace on the model."""

import math

import pytest
import torch
from torch import nn

from trainer.errors import DataError
from trainer.evaluation.loss import ValidationLoss, validation_loss


class Constant(nn.Module):
    """Says for each row of inputs the loss that stands in it, and notes how it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.calls = nn.Parameter(torch.zeros(1)), []

    def forward(self, inputs, labels, reduction):
        self.calls.append((reduction, self.training, torch.is_grad_enabled()))
        counted = labels != -100
        return torch.stack((inputs[counted].sum(), counted.sum().float()))


def test_each_token_counts_once_however_batches_are_cut():
    inputs, labels = torch.rand(6, 4), torch.ones(6, 4, dtype=torch.long)
    labels[0, :3] = -100
    expected = float(inputs[labels != -100].double().mean())
    for cut in (1, 2, 5, 6):
        batches = zip(inputs.split(cut), labels.split(cut), strict=True)
        result = validation_loss(Constant(), batches, lambda total: total)
        assert result.num_tokens == 21
        assert result.loss == pytest.approx(expected, rel=1e-6)


def test_sums_are_in_float64_so_that_small_losses_survive_many_large_ones():
    values = [torch.tensor([[2.0**24]]), *[torch.tensor([[1.0]])] * 64]
    batches = [(value, torch.ones(1, 1, dtype=torch.long)) for value in values]
    assert validation_loss(Constant(), batches, lambda total: total).loss == (2.0**24 + 64) / 65


def test_ranks_are_summed_before_the_division():
    batches = [(torch.tensor([[3.0]]), torch.ones(1, 1, dtype=torch.long))]
    other_rank = torch.tensor([9.0, 3.0], dtype=torch.float64)
    result = validation_loss(Constant(), batches, lambda total: total + other_rank)
    assert result.loss == 3.0
    assert result.num_tokens == 4


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_evaluated_without_gradients_and_left_in_its_mode(training):
    model = Constant().train(training)
    validation_loss(model, [(torch.ones(1, 1), torch.ones(1, 1, dtype=torch.long))], lambda total: total)
    assert model.calls == [("sum", False, False)]
    assert model.training == training


def test_bits_a_byte_compare_across_tokenizers():
    assert ValidationLoss(loss=math.log(2) * 3, num_tokens=100).bits_per_byte(400) == pytest.approx(0.75)


def test_the_mode_comes_back_after_an_error():
    model = Constant().train()
    with pytest.raises(TypeError):
        validation_loss(model, [(None, None)], lambda total: total)
    assert model.training


def test_no_held_out_token_is_an_error_with_advice():
    with pytest.raises(DataError, match="data.validation"):
        validation_loss(Constant(), [], lambda total: total)
