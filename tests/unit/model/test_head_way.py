"""Which way a head goes: one kernel where a compiler can make it, tried once and told once, and never compiled again in a run."""

import contextlib
import logging
import re

import pytest
import torch
from torch._inductor.utils import run_and_get_code

from tests.messages import says
from tests.unit.model.tiny import tiny_model
from trainer.model import head, head_way
from trainer.model.fused import NO_TARGET, compiled_log_likelihoods, log_likelihoods
from trainer.model.head import default_chunk_tokens
from trainer.model.head_way import HeadWay, find_head_way

TOKENS = torch.randint(257, (3, 65), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def of_cpus_too(monkeypatch):
    """A CPU is treated as a GPU is, with a compiler that stops before the kernels; tests of the real one take it back."""
    monkeypatch.setattr(head_way, "FUSED_DEVICES", ("cpu",))
    traced = torch.compile(log_likelihoods, dynamic=False, fullgraph=True, backend="aot_eager")
    monkeypatch.setattr(head, "compiled_log_likelihoods", lambda: traced)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()
    torch.use_deterministic_algorithms(False)


def found(model, num_tokens=192, compiler="inductor", autocast=contextlib.nullcontext, gather=lambda value: [value]):
    return find_head_way(model, num_tokens, compiler=compiler, autocast=autocast, gather=gather)


def loss_and_gradients(model, autocast=contextlib.nullcontext, tokens=TOKENS):
    model.zero_grad()
    with autocast():
        loss = model(tokens[:, :-1], labels=tokens[:, 1:])
    loss.backward()
    return float(loss.detach()), [parameter.grad.clone() for parameter in model.parameters()]


def bf16():
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize(("shape", "autocast"), [("gpt2", contextlib.nullcontext), ("llama", bf16)])
def test_steps_and_validation_compile_nothing_that_was_not_tried_at_the_start(shape, autocast, monkeypatch):
    """Under deterministic mode and gradient checkpointing, with a last chunk and a last batch that are smaller."""
    torch.use_deterministic_algorithms(True)
    model = tiny_model(shape)
    (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)(
        {"use_reentrant": False}
    )
    expected, gradients = loss_and_gradients(model, autocast)
    monkeypatch.setattr(head_way, "default_chunk_tokens", lambda vocabulary, device, size: 128)
    model.head_way = found(model, 190, autocast=autocast)
    assert model.head_way == HeadWay(True, torch.float32 if autocast is not bf16 else torch.bfloat16, 128)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(2):
            loss, ours = loss_and_gradients(model, autocast)
        with torch.no_grad(), autocast():
            for rows in (3, 1):
                model(TOKENS[:rows, :-1], labels=TOKENS[:rows, 1:], reduction="sum")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2, "with gradients and without"
    assert loss == pytest.approx(expected, rel=1e-6)
    for actual, wanted in zip(ours, gradients, strict=True):
        assert float((actual - wanted).norm() / wanted.norm().clamp(min=1e-9)) < (
            1e-5 if autocast is not bf16 else 5e-3
        )


@pytest.mark.long
def test_a_model_that_is_compiled_whole_calls_the_kernel_behind_its_break():
    model = tiny_model("gpt2")
    expected, _ = loss_and_gradients(model)
    model.head_way = found(model)
    whole = torch.compile(model, backend="eager", dynamic=False)
    loss = float(whole(TOKENS[:, :-1], labels=TOKENS[:, 1:]))
    assert loss == pytest.approx(expected, rel=1e-6)


@pytest.mark.long
def test_the_compiler_makes_one_kernel_of_it_that_writes_in_place():
    """What a GPU gets, as this machine's compiler makes it: its scheduler, which decides what becomes one kernel, is the same."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(64, 320, generator=generator)
    targets = torch.randint(257, (64, 1), generator=generator, dtype=torch.int32)
    targets[::7] = NO_TARGET
    expected_gradient = logits.clone()
    expected = log_likelihoods(expected_gradient, targets, None, 257, 1.0)
    with torch._inductor.config.patch(force_disable_caches=True):
        likelihoods, [code] = run_and_get_code(compiled_log_likelihoods(), logits, targets, None, 257, 1.0)
    assert len(set(re.findall(r"cpp_fused_\w+", code))) == 1
    assert "empty_strided_cpu((64, 320)" not in code
    torch.testing.assert_close(likelihoods, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(logits, expected_gradient, rtol=1e-5, atol=1e-7)
    assert logits[::7].count_nonzero() == 0
    assert logits[:, 257:].count_nonzero() == 0


def fails(*operands):
    raise RuntimeError("\n  no such compiler: gcc\nand much more")


def test_a_compiler_that_fails_is_told_once_with_its_reason_and_the_passes_are_taken(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    model = tiny_model("gpt2")
    expected, _ = loss_and_gradients(model)
    monkeypatch.setattr(head, "compiled_log_likelihoods", lambda: fails)
    model.head_way = found(model)
    assert not model.head_way.fused
    assert model.head_way.chunk_tokens == default_chunk_tokens(model.config.vocab_size, model.device)
    assert loss_and_gradients(model)[0] == expected
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    says(record.getMessage(), "no such compiler: gcc")


def test_memory_that_runs_out_at_the_trial_is_no_reason_for_another_way(monkeypatch):
    def full(*operands):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(head, "compiled_log_likelihoods", lambda: full)
    with pytest.raises(torch.OutOfMemoryError):
        found(tiny_model("gpt2"))


def test_what_one_rank_cannot_do_none_does():
    assert not found(tiny_model("gpt2"), gather=lambda value: [value, "compiling it failed"]).fused
    assert found(tiny_model("gpt2"), gather=lambda value: [value, None]).fused


@pytest.mark.parametrize("compiler", ["no", "aot_eager"])
def test_what_the_cluster_file_leaves_out_is_no_warning(compiler, caplog):
    caplog.set_level(logging.INFO)
    assert not found(tiny_model("gpt2"), compiler=compiler).fused
    [record] = caplog.records
    assert record.levelno == logging.INFO
    assert "torch.compile" in record.getMessage()


def test_a_bias_in_half_precision_is_summed_by_passes():
    model = tiny_model("llama")
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(model.config.vocab_size))
    assert found(model).fused
    assert not found(model, autocast=bf16).fused


def test_a_cpu_and_a_plain_head_keep_their_ways(monkeypatch):
    model = tiny_model("gpt2")
    model.head_reason = "its logits change after the head"
    assert found(model) is None
    monkeypatch.undo()
    assert found(tiny_model("gpt2")) is None


@pytest.mark.parametrize(
    ("num_tokens", "most", "expected"),
    [(32768, 19840, 16384), (16384, 19840, 16384), (32768, 9920, 8192), (190, 128, 128), (70, 256, 128)],
)
def test_chunks_are_equal_and_hold_all_tokens(num_tokens, most, expected):
    assert head_way.equal_chunks(num_tokens, most) == expected
