"""What a process finds out, where everything that it asks may break."""

import io
import json
import os
import sys

import pytest

from trainer.errors import ConfigError, LaunchError, PrecisionError
from trainer.precision import backend
from trainer.tools.doctor import examine


@pytest.fixture
def broken(monkeypatch):
    """Lets every look at the backend raise."""

    def by(error):
        def load():
            raise error

        monkeypatch.setattr(backend, "load", load)

    return by


def test_a_backend_that_is_missing_is_no_problem_and_a_broken_one_is(broken):
    broken(ModuleNotFoundError("No module named 'transformer_engine'", name="transformer_engine"))
    assert examine.find_out(examine.BACKEND, None) == {"name": None}
    for error in (
        ModuleNotFoundError("No module named 'onnx'", name="onnx"),
        OSError("libnccl.so.2"),
        AssertionError(),
    ):
        broken(error)
        assert type(error).__name__ in examine.find_out(examine.BACKEND, None)["problem"]


@pytest.mark.parametrize("error", [ConfigError("model.config is refused"), PrecisionError("not an option")])
def test_a_mistake_in_what_was_typed_is_told_from_what_the_machine_lacks(monkeypatch, error):
    def raises(what):
        raise what

    monkeypatch.setattr(examine, "_launch", raises)
    assert examine.find_out(examine.LAUNCH, {"what": error}) == {"mistake": str(error)}
    error = LaunchError("torch finds none it can use")
    assert examine.find_out(examine.LAUNCH, {"what": error}) == {"problem": "torch finds none it can use"}


def test_why_torch_can_use_no_gpu_is_told_in_its_words(monkeypatch):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert examine.find_out(examine.TORCH, None) == {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "num_gpus": 0,
    }

    def init():
        raise RuntimeError("The NVIDIA driver on your system is too old")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", init)
    found = examine.find_out(examine.TORCH, None)
    assert (found["cuda"], found["num_gpus"]) == ("13.0", 0)
    assert found["problem"].startswith("RuntimeError: The NVIDIA driver on your")


def test_after_a_failure_on_a_gpu_nothing_more_is_asked_of_the_process(monkeypatch):
    import torch

    answers = {
        "a": {"name": "x"},
        "b": {"problem": "CUDA error: an illegal memory access was encountered"},
        "c": {"name": "x"},
    }
    monkeypatch.setattr(examine, "find_out", lambda question, asked: answers[question])
    monkeypatch.setattr(examine, "end_with_parent", lambda: None)

    def told():
        monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps({"questions": list("abc"), "asked": None})))
        here, there = os.pipe()
        examine.main(there)
        with open(here, encoding="utf-8") as file:
            return [json.loads(line)[0] for line in file]

    assert told() == ["a", "b", "c"]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert told() == ["a", "b"]
    answers["b"] = {"decision": {"asked": "fp8"}, "probe_error": None}
    assert told() == ["a", "b"]
    answers["b"] = {"decision": {"asked": "fp8"}, "probe_error": 0.04}
    assert told() == ["a", "b", "c"]
