import math
import sys

import pytest
import torch

from tests.messages import refuses, says
from trainer.config.schema import PrecisionConfig
from trainer.errors import PrecisionError
from trainer.precision import backend, probe
from trainer.precision.decide import decide
from trainer.precision.recipes import RECIPES


@pytest.fixture
def imports(monkeypatch):
    """Lets every import of TransformerEngine do as it is told."""

    def put(effect):
        monkeypatch.setattr(backend, "find_spec", lambda name: object())
        monkeypatch.setattr(backend.importlib, "import_module", effect)
        backend.load.cache_clear()

    yield put
    backend.load.cache_clear()


def pretend_h100(monkeypatch):
    """A device that has everything but TransformerEngine."""
    facts = probe.Facts("cuda", True, gpu="H100", capability=(9, 0), cuda=(13, 0))
    monkeypatch.setattr(probe, "device_facts", lambda device_type: facts)


def test_without_fp8_nothing_of_it_is_looked_at(monkeypatch):
    monkeypatch.setattr(backend, "is_emulated", lambda: pytest.fail("looked"))
    assert probe.probe_device("cpu") == probe.Facts("cpu", has_bf16=True)


def test_a_cpu_without_the_stand_in_is_a_cpu(monkeypatch):
    assert decide("fp8", probe.probe_device("cpu", PrecisionConfig())).mode == "bf16"


@pytest.mark.parametrize("name", RECIPES)
def test_the_stand_in_passes_the_probe_with_every_recipe_and_is_called_what_it_is(stand_in, name):
    facts = probe.probe_device("cpu", PrecisionConfig(recipe=name))
    assert facts.emulated
    assert facts.problem is None
    assert "emulation" in facts.backend
    assert 0.02 < facts.probe_error < 0.1
    assert decide("fp8", facts, PrecisionConfig(recipe=name)).label == "fp8 emulation"


def test_the_probe_leaves_the_random_state_alone(stand_in):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    probe.probe_device("cpu", PrecisionConfig())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            ModuleNotFoundError("No module named 'transformer_engine'", name="transformer_engine"),
            "launch.sh --setup fp8",
        ),
        (
            ModuleNotFoundError("No module named 'onnx'", name="onnx"),
            "ModuleNotFoundError: No module named 'onnx'",
        ),
        (OSError("libnccl.so.2: cannot open shared object file"), "OSError: libnccl.so.2"),
        (RuntimeError("found empty torch extension"), "RuntimeError: found empty"),
        (FileNotFoundError("no torch part"), "FileNotFoundError: no torch part"),
        (AssertionError(""), "AssertionError"),
    ],
)
def test_a_broken_installation_is_told_in_its_own_words(monkeypatch, imports, error, words):
    def broken(name):
        raise error

    imports(broken)
    pretend_h100(monkeypatch)
    facts = probe.probe_device("cuda", PrecisionConfig())
    says(facts.problem, words)
    assert decide("fp8", facts).mode == "bf16"


def test_transformer_engines_own_refusal_is_told_in_its_words(stand_in, monkeypatch):
    monkeypatch.setattr(
        stand_in, "is_fp8_available", lambda return_reason: (False, "CublasLt version 12.1.3.x or higher required.")
    )
    says(probe.probe_device("cpu", PrecisionConfig()).problem, "CublasLt version 12.1.3.x or higher required")

    def raises(return_reason):
        raise RuntimeError("Found no NVIDIA driver")

    monkeypatch.setattr(stand_in, "is_fp8_available", raises)
    assert "Found no NVIDIA driver" in probe.probe_device("cpu", PrecisionConfig()).problem


def test_a_layer_that_cannot_be_computed_is_told(stand_in, monkeypatch):
    monkeypatch.setattr(
        stand_in.Linear, "forward", lambda self, x, is_first_microbatch: (_ for _ in ()).throw(ValueError("no GEMM"))
    )
    says(probe.probe_device("cpu", PrecisionConfig()).problem, "ValueError: no GEMM")


def test_a_layer_that_was_not_rounded_is_found_out(stand_in, monkeypatch):
    monkeypatch.setattr(stand_in.layers, "rounded", lambda tensor, largest, scale=None: tensor.float())
    says(probe.probe_device("cpu", PrecisionConfig()).problem, "Float8CurrentScaling")


def test_a_layer_that_is_far_off_is_found_out(stand_in, monkeypatch):
    monkeypatch.setattr(stand_in.layers, "rounded", lambda tensor, largest, scale=None: tensor.float() * 1.3)
    says(probe.probe_device("cpu", PrecisionConfig()).problem, "fp32", "20%")


@pytest.mark.parametrize(
    ("forward", "worst", "good"),
    [
        (0.037, 0.06, True),
        (0.003, 0.06, False),
        (0.037, 0.3, False),
        (0.037, math.nan, False),
        (math.nan, math.nan, False),
    ],
)
def test_the_probes_errors_are_judged_on_both_sides(forward, worst, good):
    assert (probe.judge(forward, worst, RECIPES["current"]) is None) == good


def test_a_recipe_that_transformer_engine_refuses_is_a_paragraph(stand_in):
    with refuses(PrecisionError, "DelayedScaling", "amax_compute_algo"):
        backend.make_recipe(RECIPES["delayed"], "hybrid", {"amax_compute_algo": "median"})
    with refuses(PrecisionError, "E5M2"):
        backend.make_recipe(RECIPES["current"], "e5m2", {})


def test_an_option_that_this_version_has_no_more_is_refused_and_not_dropped(stand_in):
    recipes = sys.modules["transformer_engine.common.recipe"]
    recipes.DelayedScaling(interval=2)  # which its class takes, and drops
    with refuses(PrecisionError, "precision.options.interval", "DelayedScaling"):
        backend.make_recipe(RECIPES["delayed"], "hybrid", {"interval": 2})


def test_what_was_asked_stands_in_the_recipe(stand_in):
    made = backend.make_recipe(RECIPES["delayed"], "e4m3", {"amax_history_len": 16, "amax_compute_algo": "most_recent"})
    assert (made.fp8_format.name, made.amax_history_len, made.amax_compute_algo) == ("E4M3", 16, "most_recent")
