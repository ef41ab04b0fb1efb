"""The iteration by itself: what it computes in, what it computes, and which matrices it takes together."""

import pytest
import torch

from trainer.optim import muon_with_adamw as muon
from trainer.optim.muon_with_adamw import iteration_dtype, orthogonalize, stacks

SETTINGS = {"coefficients": (3.4445, -4.7750, 2.0315), "num_steps": 5, "eps": 1e-7}
SHAPES = [(8, 8), (8, 24), (24, 8)]


def matrices(shape, number=3):
    return torch.randn(number, *shape, generator=torch.Generator().manual_seed(0))


def test_a_cpu_iterates_in_fp32_and_a_gpu_in_bf16():
    assert iteration_dtype("cpu") is torch.float32
    assert iteration_dtype("cuda") is torch.bfloat16


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_singular_values_come_near_one_and_singular_vectors_stay(shape, dtype):
    given = matrices(shape)
    found = orthogonalize(given.to(dtype), **SETTINGS)
    assert found.dtype is dtype
    assert found.shape == given.shape
    values = torch.linalg.svdvals(found.float())
    assert values.min() > 0.3
    assert values.max() < 1.3
    left, _, right = torch.linalg.svd(given, full_matrices=False)
    middle = left.mT @ found.float() @ right.mT
    off_diagonal = middle - torch.diag_embed(torch.diagonal(middle, dim1=-2, dim2=-1))
    assert off_diagonal.abs().max() < (1e-4 if dtype is torch.float32 else 0.1)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_arithmetic_is_torchs_own(shape, monkeypatch):
    given = matrices(shape)
    published = torch.stack(
        [torch.optim._muon._zeropower_via_newtonschulz(one, SETTINGS["coefficients"], 5, 1e-7) for one in given]
    )
    in_bf16 = orthogonalize(given.bfloat16(), **SETTINGS)
    assert (in_bf16 - published).float().norm() < 0.03 * published.float().norm()
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    exact = torch.stack(
        [torch.optim._muon._zeropower_via_newtonschulz(one, SETTINGS["coefficients"], 5, 1e-7) for one in given]
    )
    torch.testing.assert_close(orthogonalize(given, **SETTINGS), exact, rtol=1e-5, atol=1e-6)


def test_a_matrix_of_zeros_stays_one():
    assert torch.equal(orthogonalize(torch.zeros(2, 4, 6), **SETTINGS), torch.zeros(2, 4, 6))


def test_a_stack_has_one_shape_and_no_more_than_its_bytes(monkeypatch):
    monkeypatch.setattr(muon, "STACK_BYTES", 3 * 8 * 8 * 4)
    parameters = [torch.zeros(8, 8) for _ in range(7)] + [torch.zeros(8, 24), torch.zeros(24, 8), torch.zeros(64, 64)]
    found = list(stacks(parameters))
    assert [(len(stack), tuple(stack[0].shape)) for stack in found] == [
        (3, (8, 8)),
        (3, (8, 8)),
        (1, (8, 8)),
        (1, (8, 24)),
        (1, (24, 8)),
        (1, (64, 64)),
    ]
    assert [id(parameter) for stack in found for parameter in stack] == [id(parameter) for parameter in parameters]


def test_matrices_of_different_types_are_not_in_one_stack():
    parameters = [torch.zeros(8, 8), torch.zeros(8, 8, dtype=torch.bfloat16), torch.zeros(8, 8)]
    assert [{parameter.dtype for parameter in stack} for stack in stacks(parameters)] == [
        {torch.float32},
        {torch.bfloat16},
    ]
