"""One flipped bit is found, whatever the type of the number, and the rank with it is named where more than two are there."""

import pytest
import torch

from trainer.safety.digests import digest_of, ranks_that_differ, replicated_tensors

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_any_flipped_bit_gives_another_digest(dtype):
    tensors = [torch.randn(5, 3).to(dtype), torch.randn(7).to(dtype), torch.tensor(3.0).to(dtype)]
    before = digest_of(tensors, CPU)
    assert torch.equal(digest_of(tensors, CPU), before)
    for tensor in tensors:
        bits = tensor.view(-1).view(torch.uint8)
        for place in range(len(bits)):
            for bit in range(8):
                bits[place] ^= 1 << bit
                assert not torch.equal(digest_of(tensors, CPU), before), (place, bit)
                bits[place] ^= 1 << bit


def test_numbers_that_changed_places_give_another_digest():
    one = torch.tensor([1.0, 2.0, 3.0])
    assert not torch.equal(digest_of([one], CPU), digest_of([one.flip(0)], CPU))
    assert not torch.equal(digest_of([one, one + 1], CPU), digest_of([one + 1, one], CPU))


def test_weights_and_moments_are_looked_at():
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    assert len(replicated_tensors(model, optimizer)) == 2
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert len(replicated_tensors(model, optimizer)) == 2 + 2 * 3


@pytest.mark.parametrize(
    ("digests", "ranks"),
    [
        ([5, 5, 5], []),
        ([5], []),
        ([5, 7], [0, 1]),
        ([5, 7, 5], [1]),
        ([5, 7, 8], [0, 1, 2]),
        ([5, 5, 7, 7], [0, 1, 2, 3]),
    ],
)
def test_the_minority_is_named_and_of_equals_all(digests, ranks):
    assert ranks_that_differ(digests) == ranks
