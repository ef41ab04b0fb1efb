"""Layers in fp8 whose weights are frozen: no gradient, no moments, not a bit moved, and the same gradients above them."""

import pytest
import torch

from tests.unit.precision.test_convert import converted_model
from trainer.config.schema import OptimizerConfig
from trainer.optim.build import build_optimizer
from trainer.optim.groups import check_groups
from trainer.optim.rules import freeze
from trainer.precision.audit import check_ran

FROZEN = r"embed|wte|wpe|\.0\."


@pytest.mark.parametrize("shape", ["gpt2", "llama"])
def test_a_frozen_layer_computes_in_fp8_and_is_left_alone(fp8_accelerator, stand_in, tokens, shape):
    whole, _, _ = converted_model(stand_in, shape)
    whole(tokens, labels=tokens).backward()
    model, converted, _ = converted_model(stand_in, shape)
    wanted = OptimizerConfig(groups=[{"match": FROZEN, "freeze": True}], lr=0.1)
    freeze(model, wanted.groups)
    prepared, optimizer = fp8_accelerator.prepare(model, build_optimizer(model, wanted))
    check_groups(model, optimizer)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    prepared(tokens, labels=tokens).backward()
    check_ran(converted, "the pass")
    for (name, parameter), plain in zip(model.named_parameters(), whole.parameters(), strict=True):
        assert (parameter.grad is None) == (not parameter.requires_grad), name
        assert parameter.grad is None or torch.allclose(parameter.grad, plain.grad, rtol=0.2, atol=1e-2), name
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert (
        moved
        == {name for name, p in model.named_parameters() if p.requires_grad}
        == {name for name, p in model.named_parameters() if p in optimizer.state}
    )
