"""The chunked loss is the plain loss: value and gradients, held against float64, by passes and by the function of one kernel."""

import functools
import itertools
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.contracts import IGNORED_LABEL
from trainer.model import head
from trainer.model.after_head import NOTHING, AfterHead
from trainer.model.fused import log_likelihoods
from trainer.model.head import MIN_CHUNK_TOKENS, chunked_cross_entropy, compute_dtype, default_chunk_tokens

PASSES = chunked_cross_entropy


@pytest.fixture(autouse=True, params=["passes", "one kernel"])
def way(request, monkeypatch):
    """Every test goes both ways; the function that a GPU gets compiled is called as it is, which is the same arithmetic."""
    if request.param == "one kernel":
        monkeypatch.setattr(head, "compiled_log_likelihoods", lambda: log_likelihoods)
        monkeypatch.setattr(sys.modules[__name__], "chunked_cross_entropy", functools.partial(PASSES, fused=True))
    return request.param


def operands(num_tokens=70, width=24, vocab_size=257, padded=320, dtype=torch.float32, bias=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_tokens, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(padded, width, generator=generator, dtype=torch.float64)
    offset = torch.randn(padded, generator=generator, dtype=torch.float64) if bias else None
    labels = torch.randint(vocab_size, (num_tokens,), generator=generator)
    labels[::7] = IGNORED_LABEL
    leaves = [None if t is None else t.to(dtype).requires_grad_() for t in (hidden, weight, offset)]
    return *leaves, labels


def reference(hidden, weight, bias, labels, vocab_size, after=NOTHING):
    """The plain way in float64 on the same values: sum, and gradients of what is given."""
    leaves = [None if t is None else t.detach().double().requires_grad_() for t in (hidden, weight, bias)]
    logits = after(F.linear(leaves[0], leaves[1], leaves[2])[:, :vocab_size])
    loss = F.cross_entropy(logits, labels, ignore_index=IGNORED_LABEL, reduction="sum")
    loss.backward()
    return loss.detach(), [None if t is None else t.grad for t in leaves]


def relative(actual, expected):
    actual, expected = actual.detach(), expected.detach()
    return float((actual.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-300))


@pytest.mark.parametrize(("vocab_size", "padded"), [(4096, 4096), (50257, 50304), (257, 320)])
@pytest.mark.parametrize("bias", [False, True])
def test_loss_and_gradients_equal_float64_whatever_the_chunk(vocab_size, padded, bias, way):
    hidden, weight, offset, labels = operands(vocab_size=vocab_size, padded=padded, bias=bias, num_tokens=37)
    expected, gradients = reference(hidden, weight, offset, labels, vocab_size)
    for chunk in (None, 1, 16, 36, 37, 64) if way == "passes" or padded < 50000 else (16,):
        leaves = [t for t in (hidden, weight, offset) if t is not None]
        loss, count = chunked_cross_entropy(
            hidden, weight, labels, vocab_size=vocab_size, bias=offset, chunk_tokens=chunk
        )
        assert loss.dtype == torch.float32
        assert loss.ndim == 0
        assert count == (labels != IGNORED_LABEL).sum()
        assert relative(loss, expected) < 1e-6
        for actual, wanted in zip(torch.autograd.grad(loss, leaves), [g for g in gradients if g is not None]):
            assert relative(actual, wanted) < 1e-5


@pytest.mark.parametrize("after", [AfterHead(0.25), AfterHead(cap=3.0), AfterHead(2.0, 1.5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_factor_and_a_soft_cap_have_the_loss_and_gradients_of_float64(after, dtype):
    hidden, weight, bias, labels = operands(dtype=dtype, bias=True)
    expected, gradients = reference(hidden, weight, bias, labels, 257, after)
    loss, _ = chunked_cross_entropy(hidden, weight, labels, vocab_size=257, bias=bias, chunk_tokens=16, after=after)
    assert relative(loss, expected) < 1e-6
    for actual, wanted in zip(torch.autograd.grad(loss, (hidden, weight, bias)), gradients, strict=True):
        assert relative(actual[: wanted.shape[0]], wanted) < (1e-5 if dtype == torch.float32 else 1e-14)
    with torch.no_grad():
        alone, _ = chunked_cross_entropy(
            hidden, weight, labels, vocab_size=257, bias=bias, chunk_tokens=16, after=after
        )
    assert torch.equal(alone, loss)


def test_the_mean_has_the_plain_gradient():
    hidden, weight, _, labels = operands()
    loss, count = chunked_cross_entropy(hidden, weight, labels, vocab_size=257, chunk_tokens=16)
    (loss / count * 3.0).backward()
    _, (hidden_grad, weight_grad, _) = reference(hidden, weight, None, labels, 257)
    assert relative(hidden.grad, hidden_grad * 3.0 / float(count)) < 1e-5
    assert relative(weight.grad, weight_grad * 3.0 / float(count)) < 1e-5


def test_float64_operands_stay_float64():
    hidden, weight, bias, labels = operands(6, 4, 10, 16, torch.float64, bias=True)
    total, _ = chunked_cross_entropy(hidden, weight, labels, vocab_size=10, bias=bias, chunk_tokens=4)
    actual = torch.autograd.grad(total, (hidden, weight, bias))
    _, expected = reference(hidden, weight, bias, labels, 10)
    for a, e in zip(actual, expected):
        assert a.dtype == torch.float64
        assert relative(a[: e.shape[0]], e) < 1e-14


def test_padding_ids_get_zero_gradient():
    hidden, weight, bias, labels = operands(bias=True)
    loss, _ = chunked_cross_entropy(hidden, weight, labels, vocab_size=257, bias=bias, chunk_tokens=16)
    loss.backward()
    assert weight.grad[257:].count_nonzero() == 0
    assert bias.grad[257:].count_nonzero() == 0
    assert weight.grad[:257].count_nonzero() > 0


def test_padding_rows_do_not_change_the_loss_however_large_they_are():
    hidden, weight, _, labels = operands()
    before, _ = chunked_cross_entropy(hidden, weight, labels, vocab_size=257)
    with torch.no_grad():
        weight[257:] = 1e4
    after, _ = chunked_cross_entropy(hidden, weight, labels, vocab_size=257)
    assert before == after


def test_all_labels_ignored_is_a_loss_of_zero_with_zero_gradients():
    hidden, weight, _, labels = operands()
    loss, count = chunked_cross_entropy(hidden, weight, torch.full_like(labels, IGNORED_LABEL), vocab_size=257)
    loss.backward()
    assert loss == 0
    assert count == 0
    assert hidden.grad.count_nonzero() == 0
    assert weight.grad.count_nonzero() == 0


def test_what_stands_at_an_ignored_position_does_not_matter_even_when_it_is_not_finite():
    hidden, weight, _, labels = operands()
    expected = torch.autograd.grad(chunked_cross_entropy(hidden, weight, labels, vocab_size=257)[0], weight)[0]
    with torch.no_grad():
        hidden[::7] = float("nan")
    loss, _ = chunked_cross_entropy(hidden, weight, labels, vocab_size=257)
    assert torch.isfinite(loss)
    assert torch.equal(torch.autograd.grad(loss, weight)[0], expected)


def test_certain_and_hopeless_predictions_have_exact_losses():
    weight = torch.eye(4) * 200.0
    labels = torch.tensor([0, 1])
    loss, _ = chunked_cross_entropy(torch.eye(4)[[0, 2]], weight, labels, vocab_size=4)
    assert float(loss) == pytest.approx(200.0, rel=1e-6)


def test_without_gradients_only_the_loss_is_computed():
    hidden, weight, _, labels = operands()
    with_gradients, _ = chunked_cross_entropy(hidden, weight, labels, vocab_size=257)
    with torch.no_grad():
        without, _ = chunked_cross_entropy(hidden, weight, labels, vocab_size=257)
    assert torch.equal(with_gradients, without)
    assert without.grad_fn is None


@pytest.mark.parametrize(("of_hidden", "of_weight"), list(itertools.product([True, False], repeat=2)))
def test_only_the_gradients_asked_for_are_computed(of_hidden, of_weight):
    hidden, weight, _, labels = operands()
    hidden, weight = hidden.detach().requires_grad_(of_hidden), weight.detach().requires_grad_(of_weight)
    loss, _ = chunked_cross_entropy(hidden, weight, labels, vocab_size=257)
    assert loss.requires_grad == (of_hidden or of_weight)
    if loss.requires_grad:
        loss.backward()
    assert (hidden.grad is not None) == of_hidden
    assert (weight.grad is not None) == of_weight


def test_the_gradients_are_used_once():
    hidden, weight, _, labels = operands()
    loss, _ = chunked_cross_entropy(hidden, weight, labels, vocab_size=257)
    loss.backward(retain_graph=True)
    with pytest.raises(AssertionError, match="used up"):
        loss.backward()


def test_autocast_computes_products_in_bf16_and_the_loss_in_fp32():
    hidden, weight, _, labels = operands()
    expected, gradients = reference(hidden, weight, None, labels, 257)
    with torch.autocast("cpu", torch.bfloat16):
        assert compute_dtype(hidden, weight) == torch.bfloat16
        loss, _ = chunked_cross_entropy(hidden, weight, labels, vocab_size=257, chunk_tokens=16)
    loss.backward()
    assert loss.dtype == hidden.grad.dtype == weight.grad.dtype == torch.float32
    exact, _ = chunked_cross_entropy(hidden, weight, labels, vocab_size=257)
    assert 0 < relative(loss, expected) < 1e-2
    assert loss != exact
    assert relative(hidden.grad, gradients[0]) < 2e-2
    assert relative(weight.grad, gradients[1]) < 2e-2


def test_bf16_weights_get_bf16_gradients_summed_in_fp32():
    hidden, weight, _, labels = operands(num_tokens=600)
    low = weight.detach().bfloat16().requires_grad_()
    _, (_, expected, _) = reference(hidden.bfloat16().float(), low.float(), None, labels, 257)
    loss, _ = chunked_cross_entropy(hidden.bfloat16(), low, labels, vocab_size=257, chunk_tokens=8)
    loss.backward()
    assert low.grad.dtype == torch.bfloat16
    assert relative(low.grad, expected) < 2e-2


def test_equal_calls_give_equal_bits():
    runs = []
    for _ in range(2):
        hidden, weight, _, labels = operands()
        loss, _ = chunked_cross_entropy(hidden, weight, labels, vocab_size=257, chunk_tokens=16)
        loss.backward()
        runs.append((loss.detach(), hidden.grad, weight.grad))
    assert all(torch.equal(a, b) for a, b in zip(*runs))


def test_the_default_chunk_fills_its_budget_and_never_goes_below_what_pays():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert default_chunk_tokens(50304, cpu) == MIN_CHUNK_TOKENS
    assert 512 < default_chunk_tokens(4096, cpu) <= 1024
    with pytest.MonkeyPatch.context() as patch:
        for gigabytes, budget in ((141, 2e9), (80, 2e9), (24, 0.6e9)):
            patch.setattr(
                torch.cuda,
                "get_device_properties",
                lambda device, gigabytes=gigabytes: SimpleNamespace(total_memory=int(gigabytes * 1e9)),
            )
            for size in (2, 4, 6):
                assert 0.9 < default_chunk_tokens(50304, cuda, size) * 50304 * size / budget <= 1.0
        assert default_chunk_tokens(10**7, cuda, 4) == MIN_CHUNK_TOKENS


# Half precision


def errors(cross_entropy, dtype):
    """Relative errors of loss and gradients against float64 on the rounded operands: what the arithmetic adds."""
    hidden, weight, _, labels = operands(num_tokens=300, width=64, dtype=dtype)
    expected, wanted = reference(hidden, weight, None, labels, 257)
    loss, _ = cross_entropy(hidden, weight, labels, vocab_size=257, chunk_tokens=64)
    gradients = torch.autograd.grad(loss, (hidden, weight))
    return [relative(loss, expected), *(relative(actual, w) for actual, w in zip(gradients, wanted[:2], strict=True))]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_further_from_float64_one_way_than_the_other(dtype):
    for ours, of_passes in zip(errors(chunked_cross_entropy, dtype), errors(PASSES, dtype), strict=True):
        assert ours <= 1.001 * of_passes < 0.05


def test_fp16_keeps_probabilities_that_are_too_small_for_it():
    """Of 4,096 ids some have 2^-20, of which fp16 keeps 4 bits; the logits, -4 to 4 by sixteenths, are exact in it."""
    hidden, weight = (
        torch.full((8, 1), 64.0).half().requires_grad_(),
        (torch.linspace(-64, 64, 4096).round() / 1024).half().unsqueeze(1).requires_grad_(),
    )
    labels = torch.full((8,), 4095)
    _, (_, expected, _) = reference(hidden, weight, None, labels, 4096)
    loss, _ = chunked_cross_entropy(hidden, weight, labels, vocab_size=4096)
    torch.testing.assert_close(torch.autograd.grad(loss, weight)[0].double(), expected, rtol=2e-3, atol=0)


class WideProducts(TorchDispatchMode):
    """Products of half precision in fp32 on a CPU, as a GPU has them; counts them."""

    number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func not in (torch.ops.aten.mm.dtype, torch.ops.aten.mm.dtype_out):
            return func(*args, **(kwargs or {}))
        left, right, dtype = args
        assert left.dtype in (torch.bfloat16, torch.float16)
        assert dtype == torch.float32
        self.number += 1
        product = left.float() @ right.float()
        return kwargs["out"].copy_(product) if kwargs else product


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_where_a_device_leaves_products_in_fp32_the_gradients_are_nearer_to_float64(dtype, monkeypatch):
    before = errors(PASSES, dtype)
    monkeypatch.setattr(head, "WIDE_PRODUCTS", ("cpu",))
    with WideProducts() as wide:
        now = errors(chunked_cross_entropy, dtype)
    assert wide.number == 10, "two for each of five chunks"
    assert all(a <= 1.02 * b for a, b in zip(now, before, strict=True))


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_under_fp16_a_gpu_takes_bf16_where_it_has_it_and_a_cpu_fp32(monkeypatch, has_bf16, expected):
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: True)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: torch.float16)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16 and not including_emulation
    )
    for device, wanted in (("cuda", expected), ("cpu", torch.float32)):
        operand = SimpleNamespace(device=torch.device(device), dtype=torch.float32)
        assert compute_dtype(operand, operand) == wanted
