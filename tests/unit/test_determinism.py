"""What `deterministic` asks of torch, what it costs, and what is said where an operation has no deterministic form."""

import os

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.messages import says
from trainer import determinism
from trainer.errors import ConfigError
from trainer.launch.environment import LaunchEnv
from trainer.launch.process_group import init_process_group
from trainer.model.head import chunked_cross_entropy


@pytest.fixture(autouse=True)
def as_before():
    environment = dict(os.environ)
    for name in ("CUBLAS_WORKSPACE_CONFIG", "NCCL_ALGO", "NVTE_ALLOW_NONDETERMINISTIC_ALGO"):
        os.environ.pop(name, None)
    yield
    torch.use_deterministic_algorithms(False)
    os.environ.clear()
    os.environ.update(environment)


def is_strict():
    return torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()


def test_a_run_asks_for_determinism_and_not_only_for_warnings_of_its_absence():
    init_process_group(LaunchEnv("no", True, 1, True), deterministic=True)
    assert is_strict()
    assert (
        os.environ["CUBLAS_WORKSPACE_CONFIG"],
        os.environ["NCCL_ALGO"],
        os.environ["NVTE_ALLOW_NONDETERMINISTIC_ALGO"],
    ) == (":4096:8", "Ring", "0")


def test_without_it_nothing_is_asked_of_torch_cublas_and_nccl():
    init_process_group(LaunchEnv("no", True, 1, True), deterministic=False)
    assert not torch.are_deterministic_algorithms_enabled()
    assert not {"CUBLAS_WORKSPACE_CONFIG", "NCCL_ALGO", "NVTE_ALLOW_NONDETERMINISTIC_ALGO"} & os.environ.keys()


@pytest.mark.parametrize("before", [(True, False), (True, True), (False, False)])
def test_any_order_lasts_for_its_block_whatever_happens_in_it(before):
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    with pytest.raises(ZeroDivisionError), determinism.any_order():
        assert not torch.are_deterministic_algorithms_enabled()
        raise ZeroDivisionError
    assert (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    ) == before


class Flags(TorchDispatchMode):
    """Notes under which flag each operation is called."""

    def __init__(self):
        super().__init__()
        self.seen = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.setdefault(func.overloadpacket.__name__, set()).add(torch.are_deterministic_algorithms_enabled())
        return func(*args, **(kwargs or {}))


def test_the_scatter_of_the_head_is_spared_its_deterministic_form_and_nothing_else_is():
    torch.use_deterministic_algorithms(True)
    hidden, weight = torch.randn(6, 4, requires_grad=True), torch.randn(8, 4, requires_grad=True)
    with Flags() as flags:
        chunked_cross_entropy(hidden, weight, torch.randint(0, 8, (6,)), vocab_size=8)[0].backward()
    assert flags.seen.pop("scatter_") == {False}
    assert set().union(*flags.seen.values()) == {True}
    assert is_strict()


def test_an_operation_without_a_deterministic_form_is_a_paragraph_with_its_name_and_what_to_do():
    torch.use_deterministic_algorithms(True)
    with pytest.raises(ConfigError) as caught, determinism.missing_form_explained(determinism.SWITCH_OFF):
        torch.zeros(4).put_(torch.tensor([1]), torch.ones(1))
    said = str(caught.value)
    assert "put_" in said
    says(said, "deterministic")
    assert "deterministic=false" in said
    assert "\n" not in said


def test_a_workspace_setting_of_the_environment_that_cublas_refuses_is_named(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with pytest.raises(ConfigError) as caught, determinism.missing_form_explained("a remedy"):
        raise RuntimeError(
            "Deterministic behavior was enabled, but this uses CuBLAS: set CUBLAS_WORKSPACE_CONFIG=:4096:8 or :16:8"
        )
    says(caught.value, "CUBLAS_WORKSPACE_CONFIG=:0:0", "a remedy")


def test_other_errors_pass_by():
    error = RuntimeError("shapes do not match")
    with pytest.raises(RuntimeError) as caught, determinism.missing_form_explained("a remedy"):
        raise error
    assert caught.value is error


# What it costs


def test_attention_is_timed_under_the_flags_of_the_run_and_without_them(monkeypatch):
    torch.use_deterministic_algorithms(True)
    seen = []

    def takes(work):
        work()
        seen.append(is_strict())
        assert is_strict() or not torch.are_deterministic_algorithms_enabled()
        return 0.003 if is_strict() else 0.001

    monkeypatch.setattr(determinism, "_seconds", takes)
    assert determinism.attention_seconds((1, 2, 8, 4), torch.float32, torch.device("cpu")) == (0.003, 0.001)
    assert seen == [True, False] * determinism.ROUNDS
    assert is_strict()


def test_its_cost_is_a_share_of_a_step():
    says(determinism.cost(0.002, 0.001, num_layers=12, pass_seconds=0.1), "12.0 %")
    says(determinism.cost(0.001, 0.002, num_layers=12, pass_seconds=0.1), "0.0 %")


def test_the_report_of_a_gpu_times_whole_passes_and_those_of_others_time_nothing(monkeypatch):
    passes = []
    monkeypatch.setattr(
        determinism,
        "attention_seconds",
        lambda shape, dtype, device: (0.002, 0.001) if shape == (4, 2, 64, 8) else None,
    )
    monkeypatch.setattr(determinism, "_seconds", lambda work: work() or 0.04)

    class Model:
        num_attention_heads, num_hidden_layers, hidden_size = 2, 10, 16

    def said(deterministic, device):
        passes.clear()
        return determinism.report(
            deterministic, torch.device(device), torch.bfloat16, Model, 4, 64, lambda: passes.append(1)
        )

    says(said(True, "cuda"), "25.0 %")
    assert len(passes) == 4
    assert "off" in said(False, "cuda")
    assert "last bit" in said(False, "cuda")
    assert not passes
    assert "costs nothing" in said(True, "cpu")
    assert not passes
