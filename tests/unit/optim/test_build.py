"""Groups, both optimizers, their state, and the step that is refused."""

import copy

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from tests.accelerators import forget_accelerator
from tests.messages import refuses
from trainer.config.optimizers import optimizer_entry
from trainer.config.schema import OptimizerConfig
from trainer.errors import ConfigError
from trainer.optim.build import build_optimizer, step_if_finite
from trainer.optim.groups import (
    check_groups,
    named_groups,
    set_learning_rate,
)
from trainer.optim.muon_with_adamw import MuonWithAdamW

NAMES = ["adamw", "muon"]


class Tiny(nn.Module):
    """The parts of a language model that groups tell apart: tables, hidden matrices, a stack, norms, biases, a head."""

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(20, 8), nn.Embedding(6, 8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8, bias=False)
        self.stack = nn.Parameter(torch.randn(2, 8, 8) * 0.1)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 20, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def get_input_embeddings(self) -> nn.Module:
        return self.tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        x = x + self.down(torch.relu(self.up(x)))
        x = x + x @ self.stack[0] + x @ self.stack[1]
        return self.head(self.norm(x))


def tiny(tied: bool = True) -> Tiny:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Tiny(tied)


def optimizer_of(model, name, *, fused=True, **settings):
    return build_optimizer(model, OptimizerConfig(name=name, **({"lr": 1e-2} | settings)), fused=fused)


def gradients(model, step):
    ids = torch.randint(20, (4, 6), generator=torch.Generator().manual_seed(step))
    model.zero_grad()
    nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.roll(-1, 1).flatten()).backward()


def train(model, optimizer, steps, start=0):
    for step in range(start, start + steps):
        set_learning_rate(optimizer, 1.0 / (1 + step))
        gradients(model, step)
        optimizer.step()


def everything(model, optimizer):
    """Parameters and state as one flat list of tensors."""
    tensors = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        tensors += [v.clone() for _, v in sorted(optimizer.state[p].items()) if torch.is_tensor(v)]
    return tensors


def equal(left, right):
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right))


@pytest.mark.parametrize("tied", [True, False])
def test_each_parameter_is_in_the_group_of_its_kind(tied):
    model = tiny(tied)
    groups = named_groups(model)
    kinds = {name: {id(p) for p in parameters.values()} for name, parameters in groups.items()}
    assert kinds["hidden"] == {id(model.up.weight), id(model.down.weight)}
    assert kinds["embeddings"] == {id(model.tokens.weight), id(model.positions.weight), id(model.head.weight)}
    assert kinds["matrices"] == {id(model.stack)}
    assert kinds["vectors"] == {id(model.up.bias), id(model.norm.weight), id(model.norm.bias)}


@pytest.mark.parametrize("name", NAMES)
def test_every_trainable_parameter_is_trained_and_frozen_ones_are_not(name):
    model = tiny(tied=False)
    model.positions.weight.requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    train(model, optimizer_of(model, name), 1)
    unchanged = {key for key, value in model.state_dict().items() if torch.equal(value, before[key])}
    assert unchanged == {"positions.weight"}


@pytest.mark.parametrize("name", NAMES)
def test_vectors_do_not_decay_and_matrices_do(name):
    decay = {
        group["name"]: group["weight_decay"]
        for group in optimizer_of(tiny(), name, weight_decay=0.3, muon_weight_decay=0.2).param_groups
    }
    assert decay == {"hidden": 0.2 if name == "muon" else 0.3, "embeddings": 0.3, "matrices": 0.3, "vectors": 0.0}


def test_a_parameter_in_no_group_or_in_two_is_caught():
    model = tiny()
    optimizer = optimizer_of(model, "adamw")
    lost = optimizer.param_groups[-1]["params"].pop()
    name = next(name for name, parameter in model.named_parameters() if parameter is lost)
    with refuses(ConfigError, "no optimizer group", name):
        check_groups(model, optimizer)
    optimizer.param_groups[-1]["params"] += [lost, lost]
    with refuses(ConfigError, "two optimizer groups"):
        check_groups(model, optimizer)
    optimizer.param_groups[-1]["params"][-1] = nn.Parameter(torch.zeros(1))
    with refuses(ConfigError, "1 parameters of the optimizer"):
        check_groups(model, optimizer)


def test_an_unknown_optimizer_is_a_config_error():
    with refuses(ConfigError, "'adamw'"):
        optimizer_entry("adam")


def test_adamw_is_torchs_fused_adamw():
    model, plain = tiny(), tiny()
    reference = torch.optim.AdamW(
        [
            {"params": [p for p in plain.parameters() if p.ndim >= 2], "weight_decay": 0.1},
            {"params": [p for p in plain.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=1e-2,
        betas=(0.9, 0.95),
        fused=True,
    )
    optimizer = optimizer_of(model, "adamw")
    for step in range(3):
        for m, o in ((model, optimizer), (plain, reference)):
            gradients(m, step)
            o.step()
    assert equal(list(model.parameters()), list(plain.parameters()))


def test_muon_is_torchs_muon_in_fp32_on_the_hidden_matrices_and_fused_adamw_on_the_rest(monkeypatch):
    model, plain = tiny(), tiny()
    optimizer = optimizer_of(model, "muon", muon_lr=0.02, muon_momentum=0.9, weight_decay=0.0, muon_weight_decay=0.1)
    hidden = [plain.up.weight, plain.down.weight]
    rest = [p for p in plain.parameters() if not any(p is h for h in hidden)]
    references = [
        torch.optim.Muon(hidden, lr=0.02, momentum=0.9, weight_decay=0.1),
        torch.optim.AdamW(rest, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)  # torch's own iteration, in fp32
    for step in range(3):
        gradients(model, step)
        optimizer.step()
        gradients(plain, step)
        for reference in references:
            reference.step()
    for ours, theirs in zip(everything(model, optimizer), everything_of(plain, references), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def everything_of(model, optimizers):
    """Parameters and state as one flat list of tensors, where each optimizer has some of the parameters."""
    tensors = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        (state,) = [optimizer.state[p] for optimizer in optimizers if p in optimizer.state]
        tensors += [v.clone() for _, v in sorted(state.items()) if torch.is_tensor(v)]
    return tensors


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_equals_the_straight_one_to_the_last_bit(name, tmp_path):
    straight = tiny()
    optimizer = optimizer_of(straight, name)
    train(straight, optimizer, 6)

    first = tiny()
    optimizer_before = optimizer_of(first, name)
    train(first, optimizer_before, 3)
    torch.save({"model": first.state_dict(), "optimizer": optimizer_before.state_dict()}, tmp_path / "state")
    saved = torch.load(tmp_path / "state", weights_only=True)
    second = tiny()
    second.load_state_dict(saved["model"])
    optimizer_after = optimizer_of(second, name)
    optimizer_after.load_state_dict(saved["optimizer"])
    assert equal(everything(first, optimizer_before), everything(second, optimizer_after))
    train(second, optimizer_after, 3, start=3)
    assert equal(everything(straight, optimizer), everything(second, optimizer_after))


@pytest.mark.parametrize("name", NAMES)
def test_the_state_dict_has_torchs_format(name):
    model = tiny()
    optimizer = optimizer_of(model, name)
    train(model, optimizer, 1)
    state = optimizer.state_dict()
    indices = [i for group in state["param_groups"] for i in group["params"]]
    assert indices == list(range(len(list(model.parameters())))) == sorted(state["state"])
    assert [group["name"] for group in state["param_groups"]] == ["hidden", "embeddings", "matrices", "vectors"]
    keys = {"momentum_buffer"} if name == "muon" else {"step", "exp_avg", "exp_avg_sq"}
    assert set(state["state"][0]) == keys


@pytest.mark.parametrize("name", NAMES)
def test_the_learning_rate_of_each_group_follows_its_own_peak_and_is_honoured(name):
    model = tiny()
    optimizer = optimizer_of(model, name, lr=0.4, muon_lr=0.8)
    assert set_learning_rate(optimizer, 0.5) == optimizer.param_groups[0]["lr"]
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates["embeddings"] == 0.2
    assert rates["hidden"] == (0.4 if name == "muon" else 0.2)
    before = [p.detach().clone() for p in model.parameters()]
    set_learning_rate(optimizer, 0.0)
    gradients(model, 0)
    optimizer.step()
    assert equal(before, list(model.parameters()))


@pytest.mark.parametrize("name", NAMES)
def test_the_state_that_a_checkpoint_needs_room_for_is_the_state_that_there_is(name):
    model = tiny()
    optimizer = optimizer_of(model, name)
    train(model, optimizer, 1)
    expected = sum(
        optimizer_entry(group["algorithm"]).state_bytes(p) for group in optimizer.param_groups for p in group["params"]
    )
    tensors = [value for state in optimizer.state.values() for value in state.values() if value.ndim]
    assert expected == sum(tensor.nbytes for tensor in tensors)


@pytest.fixture
def wrap():
    forget_accelerator()
    accelerator = Accelerator(cpu=True)
    yield {"plain": lambda optimizer: optimizer, "accelerated": accelerator.prepare_optimizer}
    forget_accelerator()


@pytest.mark.parametrize("wrapper", ["plain", "accelerated"])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_with_a_norm_that_is_not_finite_leaves_every_bit_as_it_was(name, fused, wrapper, bad, wrap):
    model = tiny()
    optimizer = wrap[wrapper](optimizer_of(model, name, fused=fused))
    train(model, optimizer, 2)
    before = everything(model, optimizer)
    gradients(model, 2)
    for parameter in model.parameters():
        parameter.grad.fill_(bad)
    step_if_finite(optimizer, torch.tensor(bad))
    assert equal(before, everything(model, optimizer))
    inner = getattr(optimizer, "optimizer", optimizer)
    assert not hasattr(inner, "found_inf")
    assert not hasattr(inner, "grad_scale")
    train(model, optimizer, 1)
    assert not equal(before, everything(model, optimizer))


@pytest.mark.parametrize("name", NAMES)
def test_a_refused_step_keeps_the_sign_of_a_zero_too(name):
    model = tiny()
    optimizer = optimizer_of(model, name, muon_weight_decay=0.1, muon_lr=0.5)
    train(model, optimizer, 1)
    state = optimizer.state[model.up.weight]
    with torch.no_grad():
        for tensor in (model.up.weight, *(value for value in state.values() if value.ndim)):
            tensor[0] = -0.0
    before = [tensor.view(torch.int32) for tensor in everything(model, optimizer)]
    gradients(model, 1)
    model.down.weight.grad[0, 0] = float("nan")
    step_if_finite(optimizer, torch.tensor(float("nan")))
    assert equal(before, [tensor.view(torch.int32) for tensor in everything(model, optimizer)])


@pytest.mark.parametrize("wrapper", ["plain", "accelerated"])
@pytest.mark.parametrize("name", NAMES)
def test_a_step_with_a_finite_norm_is_the_plain_step_to_the_last_bit(name, wrapper, wrap):
    judged, plain = tiny(), tiny()
    optimizers = [wrap[wrapper](optimizer_of(model, name)) for model in (judged, plain)]
    for step in range(3):
        gradients(judged, step)
        step_if_finite(optimizers[0], torch.tensor(1.5))
        gradients(plain, step)
        optimizers[1].step()
    assert equal(everything(judged, optimizers[0]), everything(plain, optimizers[1]))


@pytest.mark.parametrize("name", NAMES)
def test_a_first_step_that_is_refused_counts_no_step(name):
    refused, straight = tiny(), tiny()
    optimizers = [optimizer_of(model, name) for model in (refused, straight)]
    gradients(refused, 0)
    step_if_finite(optimizers[0], torch.tensor(float("nan")))
    train(refused, optimizers[0], 2)
    train(straight, optimizers[1], 2)
    assert equal(everything(refused, optimizers[0]), everything(straight, optimizers[1]))


def test_parameters_that_are_swapped_in_the_groups_are_the_ones_that_train():
    model = tiny()
    optimizer = optimizer_of(model, "muon")
    assert isinstance(optimizer, MuonWithAdamW)
    fresh = copy.deepcopy(model)
    swap = {id(old): new for old, new in zip(model.parameters(), fresh.parameters(), strict=True)}
    for group in optimizer.param_groups:
        group["params"] = [swap[id(p)] for p in group["params"]]
    before = [p.detach().clone() for p in fresh.parameters()]
    train(fresh, optimizer, 1)
    assert not any(torch.equal(a, b) for a, b in zip(before, fresh.parameters(), strict=True))


def test_a_closure_is_called_with_gradients_on():
    model = tiny()
    optimizer = optimizer_of(model, "muon")

    def closure():
        gradients(model, 0)
        return 1.5

    assert optimizer.step(closure) == 1.5
