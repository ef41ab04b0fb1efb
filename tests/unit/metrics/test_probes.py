import math
import random
import re
import textwrap

import numpy as np
import pytest
import torch
from torch import nn

from tests.launching import TINY_GPT2, TINY_LLAMA
from tests.messages import logged, says
from trainer.config.schema import OptimizerConfig
from trainer.metrics import probes as probes_module
from trainer.metrics.probes import PROBES, SAMPLE_ELEMENTS, Probe, Probes, histogram_interval, probe, sample_stride
from trainer.model.build import build_model
from trainer.model.resolve import resolve
from trainer.optim.build import build_optimizer, step_if_finite


def model_of(fields):
    config = resolve(None, fields, vocab_size=64, sequence_length=8, eot_id=0)
    return build_model(config, vocab_size=64, seed=0, device="cpu")


class Bare(nn.Module):
    """Parameters by name, and nothing else."""

    def __init__(self, **tensors):
        super().__init__()
        for name, tensor in tensors.items():
            self.register_parameter(name, nn.Parameter(tensor))


def probes_of(model, detail=1, histograms=0, **changes):
    return Probes(model, detail_every_steps=detail, histogram_every_steps=histograms, **changes)


def read(probes, change=lambda: None, step=1):
    with probes.around_update(step):
        change()
    return probes.take()


def shift(model, by=0.5):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by)


def backward(model, tokens):
    model(tokens, labels=tokens.roll(-1, dims=1)).backward()


# What is measured


@pytest.mark.parametrize("fields", [TINY_LLAMA, TINY_GPT2], ids=["llama", "gpt2"])
def test_norms_of_each_layer_group_are_those_of_its_parameters_together(fields):
    model = model_of(fields)
    backward(model, torch.arange(16).reshape(2, 8))
    numbers = read(probes_of(model), lambda: shift(model)).numbers()
    block = "transformer.h.1." if fields is TINY_GPT2 else "model.layers.1."
    inside = [p for name, p in model.named_parameters() if name.startswith(block)]
    flat = torch.cat([p.flatten() for p in inside])
    gradient = torch.cat([p.grad.flatten() for p in inside])
    assert numbers["param_norm/block_01"] == pytest.approx(flat.norm().item(), rel=1e-5)
    assert numbers["grad_norm/block_01"] == pytest.approx(gradient.norm().item(), rel=1e-5)
    total = math.hypot(*(number for tag, number in numbers.items() if tag.startswith("grad_norm/")))
    assert total == pytest.approx(torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]).item(), rel=1e-5)


def test_the_update_ratio_is_the_change_over_the_weights_before():
    model = Bare(a=torch.full((3, 4), 2.0), b=torch.full((5,), -1.0))
    numbers = read(probes_of(model), lambda: shift(model)).numbers()
    assert numbers["update_ratio/other"] == pytest.approx(math.sqrt(17 * 0.25) / math.sqrt(12 * 4 + 5), rel=1e-6)


def test_the_update_ratio_of_a_large_tensor_is_close_by_a_sample():
    generator = torch.Generator().manual_seed(0)
    weights, change = torch.randn((600, 512), generator=generator), torch.randn((600, 512), generator=generator) / 100
    change[:, ::2] = 0.0  # what a sample that meets every second column only would get wrong
    small = torch.full((4000,), 3.0)  # each element of it is looked at, and of the large one every nineteenth
    model = Bare(large=weights.clone(), small=small)

    def update():
        with torch.no_grad():
            model.large.add_(change)

    exact = change.norm() / torch.cat((weights.flatten(), small)).norm()
    assert read(probes_of(model), update).numbers()["update_ratio/other"] == pytest.approx(exact.item(), rel=0.03)


@pytest.mark.parametrize("num_elements", [1, 2**14, 2**14 + 1, 768 * 768, 50304 * 768, 10**9])
@pytest.mark.parametrize("width", [1, 64, 768, 4096])
def test_a_sample_is_bounded_and_meets_every_column(num_elements, width):
    stride = sample_stride(num_elements, width)
    assert math.gcd(stride, width) == 1
    assert stride < 2 * num_elements / SAMPLE_ELEMENTS + 40
    assert num_elements / stride <= SAMPLE_ELEMENTS
    assert stride == 1 or num_elements > SAMPLE_ELEMENTS


def test_histograms_are_of_the_weights_after_the_update_and_of_the_gradients():
    model = Bare(a=torch.arange(6.0).reshape(2, 3))
    model.a.grad = torch.full((2, 3), 3.0)
    reading = read(probes_of(model, detail=0, histograms=5), lambda: shift(model, 10.0), step=5)
    found = reading.histograms()
    assert found.keys() == {"weights/a", "gradients/a"}
    assert reading.numbers() == {}
    assert (found["weights/a"].min, found["weights/a"].max, found["weights/a"].num) == (10.0, 15.0, 6)
    assert found["gradients/a"].sum == 18.0


def test_what_is_read_is_what_was_there_then():
    model = Bare(a=torch.ones(4))
    reading = read(probes_of(model, histograms=1))
    shift(model, 100.0)
    assert reading.numbers()["param_norm/other"] == 2.0
    assert reading.histograms()["weights/a"].max == 1.0


def test_every_tag_has_a_unit_and_a_sentence_before_anything_is_measured():
    probes = probes_of(model_of(TINY_LLAMA))
    tags = probes.tags()
    assert tags.keys() == read(probes).numbers().keys()
    assert len(tags) == 3 * 5
    assert all(unit and help.endswith(".") for unit, help in tags.values())
    assert tags["grad_norm/embeddings"][1] == tags["grad_norm/final_norm"][1]


# When


def test_only_steps_that_are_due_are_measured_and_each_is_taken_once():
    probes = probes_of(Bare(a=torch.ones(4)), detail=10, histograms=25)
    kinds = {}
    for step in range(1, 51):
        with probes.around_update(step):
            pass
        if reading := probes.take():
            kinds[reading.step] = (bool(reading.numbers()), bool(reading.histograms()))
        assert probes.take() is None
    numbers, histograms, both = (True, False), (False, True), (True, True)
    assert kinds == {10: numbers, 20: numbers, 25: histograms, 30: numbers, 40: numbers, 50: both}


@pytest.mark.parametrize("off", [{"detail": 0}, {"runs_here": False, "histograms": 1}])
def test_nothing_is_measured_where_it_is_off_or_written_by_another_rank(off):
    assert read(probes_of(Bare(a=torch.ones(4)), **off)) is None


def test_histograms_come_a_hundred_times_a_run_or_as_often_as_asked_for():
    assert [histogram_interval(None, steps) for steps in (24, 420, 28610)] == [100, 100, 287]
    assert histogram_interval(7, 420) == 7
    assert histogram_interval(0, 420) == 0


# What must not happen


@pytest.fixture
def one_thread():
    """Tensors this small take longer on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


NUM_STEPS = 6


def trained(fields, name, *, monitored, precision=None):
    """Some steps, of which fp16 skips the first; everything that they leave."""
    seen, first_finite = [], 1 if precision == torch.float16 else 0
    model = model_of(fields)
    optimizer = build_optimizer(model, OptimizerConfig(name=name, lr=0.01))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, enabled=precision == torch.float16)
    probes = probes_of(model, histograms=1) if monitored else None
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    tokens = torch.randint(64, (4, 8))
    for step in range(1, NUM_STEPS + 1):
        with torch.autocast("cpu", precision, enabled=precision is not None):
            loss = model(tokens, labels=tokens.roll(-1, dims=1))
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if monitored:
            before = [(p.grad.clone(), p.grad.stride(), p.stride(), p.data_ptr()) for p in model.parameters()]
            with probes.around_update(step):
                take(optimizer, scaler, norm)
            after = [(p.grad, p.grad.stride(), p.stride(), p.data_ptr()) for p in model.parameters()]
            for (old, *rest), (new, *same) in zip(before, after, strict=True):
                assert torch.equal(old.nan_to_num(), new.nan_to_num())
                assert rest == same
            seen.append(probes.take().numbers()["grad_norm/embeddings"])
        else:
            take(optimizer, scaler, norm)
        optimizer.zero_grad()
    assert not monitored or [math.isfinite(norm) for norm in seen] == [
        step >= first_finite for step in range(NUM_STEPS)
    ]
    moments = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    streams = (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist())
    return [tensor.tolist() for tensor in (*model.state_dict().values(), *moments)], streams, scaler.state_dict()


def take(optimizer, scaler, norm):
    if scaler.is_enabled():
        scaler.step(optimizer)
        scaler.update()
    else:
        step_if_finite(optimizer, norm)


@pytest.mark.parametrize(
    ("fields", "name", "precision"),
    [
        (TINY_LLAMA, "adamw", None),
        (TINY_GPT2, "muon", None),
        (TINY_GPT2, "adamw", torch.bfloat16),
        (TINY_LLAMA, "adamw", torch.float16),
    ],
)
def test_training_with_probes_at_every_step_is_bit_for_bit_training_without(one_thread, fields, name, precision):
    assert trained(fields, name, monitored=True, precision=precision) == trained(
        fields, name, monitored=False, precision=precision
    )


def test_a_parameter_without_a_gradient_counts_as_none_and_has_no_histogram():
    model = Bare(a=torch.ones(4), b=torch.ones(5))
    model.a.grad = torch.full((4,), 2.0)
    reading = read(probes_of(model, histograms=1))
    assert reading.numbers()["grad_norm/other"] == 4.0
    assert reading.histograms().keys() == {"weights/a", "weights/b", "gradients/a"}
    model.a.grad = None
    reading = read(probes_of(model, histograms=1))
    assert reading.numbers()["grad_norm/other"] == 0.0
    assert reading.histograms().keys() == {"weights/a", "weights/b"}


def test_a_gradient_that_is_not_finite_shows_in_its_own_group_and_its_histogram_says_so(caplog):
    model = nn.ModuleDict({"embed": nn.Embedding(3, 2), "lm_head": nn.Linear(2, 3)})
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model["embed"].weight.grad[0, 1] = math.nan
    model["lm_head"].bias.grad.fill_(math.inf)
    reading = read(probes_of(model, histograms=1), step=7)
    numbers, histograms = reading.numbers(), reading.histograms()
    assert math.isnan(numbers["grad_norm/embeddings"])
    assert numbers["grad_norm/head"] == math.inf
    assert math.isfinite(numbers["param_norm/embeddings"])
    assert histograms["gradients/embed"].num == 5
    assert "gradients/lm_head.bias" not in histograms
    logged(caplog, "step 7", "2 of 6", "gradients/embed", "1 of 6")


def test_tied_empty_frozen_and_oddly_laid_out_parameters_are_measured_as_they_are():
    model = Bare(
        a=torch.ones(3, 2).t(),
        empty=torch.zeros(0, 4),
        frozen=torch.ones(9),
        low=torch.full((4,), 3.0, dtype=torch.bfloat16),
    )
    model.tied, model.frozen.requires_grad = model.a, False
    for parameter in (model.a, model.low):
        parameter.grad = torch.ones_like(parameter)
    reading = read(probes_of(model, histograms=1), lambda: shift(model, 1.0))
    numbers, histograms = reading.numbers(), reading.histograms()
    assert numbers["param_norm/other"] == pytest.approx(math.sqrt(6 * 4 + 4 * 16))
    assert model.a.stride() == (1, 2)
    assert numbers["grad_norm/other"] == pytest.approx(math.sqrt(10))
    assert numbers["update_ratio/other"] == pytest.approx(math.sqrt(10 / (6 + 36)))
    assert histograms.keys() == {f"{kind}/{name}" for kind in ("weights", "gradients") for name in ("a", "low")}


def test_norms_of_bf16_weights_are_taken_in_fp32():
    weights = torch.full((1000,), 1.0, dtype=torch.bfloat16)
    numbers = read(probes_of(Bare(a=weights))).numbers()
    assert numbers["param_norm/other"] == pytest.approx(math.sqrt(1000), rel=1e-6)  # bf16 would say 31.625


def test_weights_in_fp64_are_measured_too():
    assert read(probes_of(Bare(a=torch.ones(4, dtype=torch.float64)))).numbers()["param_norm/other"] == 2.0


def test_a_model_without_trainable_parameters_is_a_mistake_in_the_program():
    with pytest.raises(AssertionError, match="nothing to measure"):
        probes_of(nn.Identity())


# Probes that fail


def broken(update):
    """Raises."""
    raise RuntimeError(f"out of ideas{', truly' * 40}, for good")


def test_a_probe_that_raises_is_told_now_and_then_and_the_others_are_measured(caplog):
    probes = probes_of(Bare(a=torch.ones(4)), probes={**PROBES, "broken": Probe("broken", "1", broken, "Raises.")})
    for step in range(1, 9):
        assert read(probes, step=step).numbers().keys() == probes.tags().keys() - {"broken"}
    told = [record.message for record in caplog.records]
    assert len(told) == 4
    says(told[0], "broken", "RuntimeError: out of ideas", "for good", 1)
    says(told[3], "broken", 8)


def test_a_probe_whose_numbers_do_not_fit_its_tag_is_told(caplog):
    wrong = {
        "a/{group}": Probe("a/{group}", "1", lambda update: torch.ones(2), "Two."),
        "b": Probe("b", "1", lambda update: torch.ones(1), "One."),
    }
    reading = read(probes_of(Bare(a=torch.ones(4)), probes=wrong))
    assert reading.numbers() == {}
    logged(caplog, "a/{group}", "[2]", "[1]")
    logged(caplog, "b", "[1]", "[]")


def test_without_the_weights_from_before_only_what_needs_them_is_missing(monkeypatch, caplog):
    model = Bare(a=torch.ones(4))
    probes, sample = probes_of(model), probes_module.Layout.sample
    monkeypatch.setattr(probes_module.Layout, "sample", lambda *_: broken(None))
    with probes.around_update(1):
        monkeypatch.setattr(probes_module.Layout, "sample", sample)
    assert probes.take().numbers().keys() == {"grad_norm/other", "param_norm/other"}
    logged(caplog, "weights before the update")
    logged(caplog, "update_ratio/{group}", "RuntimeError")


def test_an_error_of_the_update_itself_goes_its_way():
    probes = probes_of(Bare(a=torch.ones(4)))
    with pytest.raises(ZeroDivisionError), probes.around_update(1):
        raise ZeroDivisionError
    assert probes.take() is None


# A probe of one's own


@pytest.fixture
def registry(monkeypatch):
    """The registry as it is, restored after the test."""
    monkeypatch.setattr(probes_module, "PROBES", dict(PROBES))
    return probes_module.PROBES


def test_the_example_in_the_docstring_is_a_probe(registry):
    example = textwrap.dedent(re.search(r"( +@probe.*?)\n\n", probes_module.__doc__, re.DOTALL)[1])
    exec(example, vars(probes_module) | {"__name__": "example"})
    model = Bare(a=torch.ones(4), b=torch.ones(12))
    model.a.grad, model.b.grad = torch.zeros(4), torch.ones(12)
    probes = probes_of(model, probes=registry)
    assert read(probes).numbers()["zero_gradients/other"] == 0.25
    assert probes.tags()["zero_gradients/other"] == (
        "fraction",
        "Gradient elements that are exactly zero, of an even sample.",
    )


def test_a_probe_of_a_single_number_needs_no_groups(registry):
    @probe("largest_weight", "The largest absolute weight.", unit="1")
    def largest_weight(update):
        return torch.stack([weight.abs().max() for weight in update.weights]).max()

    assert read(probes_of(Bare(a=torch.tensor([1.0, -7.0])), probes=registry)).numbers()["largest_weight"] == 7.0


def test_two_probes_of_one_tag_are_a_mistake_in_the_program(registry):
    with pytest.raises(AssertionError, match="already"):
        probe("grad_norm/{group}", "The same again.", unit="1")(broken)


def test_a_probe_needs_no_docstring_which_python_leaves_out_when_it_optimizes(registry):
    probe("new", "What it is.", unit="1")(lambda update: update)
    assert registry["new"].help == "What it is."
    assert all(known.help.endswith(".") for known in registry.values())
