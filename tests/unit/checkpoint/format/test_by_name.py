"""Moments find their parameters by name: whatever the groups were, whatever they are now."""

import copy

import pytest
import torch

from tests.messages import refuses
from tests.unit.model.tiny import tiny_model
from tests.unit.optim.test_rules import losses, of_rules, settings
from trainer.checkpoint.format.by_name import by_present_numbers
from trainer.checkpoint.format.tensor_names import moment_owners
from trainer.errors import CheckpointError
from trainer.optim.rules import former_groups

NAMES = ["adamw", "muon"]
HEAD, NORMS = {"match": "lm_head|embed", "lr": 1e-3}, {"match": "norm", "lr": 2e-3}
FROZEN = {"match": "lm_head|embed", "freeze": True}
BLOCK = {"match": r"layers\.0", "freeze": True}


def trained(*rules, steps=3, **others):
    model = tiny_model("llama")
    optimizer = of_rules(model, *rules, **{"lr": 0.01, **others})
    losses(model, optimizer, steps)
    return model, optimizer


def resumed(model, optimizer, *rules, former=None, forget_names=False, **others):
    """The same weights under these entries, with the moments of the other optimizer."""
    saved = copy.deepcopy(optimizer.state_dict())
    if forget_names:
        for group in saved["param_groups"]:
            del group["param_names"]
    again = tiny_model("llama", seed=2)
    again.load_state_dict(model.state_dict())
    present = of_rules(again, *rules, **{"lr": 0.01, **others})
    former = former_groups(again, settings(*rules).groups) if former is None else former
    present.load_state_dict(by_present_numbers(saved, present.state_dict(), moment_owners(again, present), former))
    return again, present


def moments(model, optimizer):
    return {name: optimizer.state[p] for name, p in model.named_parameters() if p in optimizer.state}


def assert_equal(ours, theirs, names):
    for name in names:
        assert ours[name].keys() == theirs[name].keys()
        assert all(torch.equal(ours[name][key], theirs[name][key]) for key in ours[name]), name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("before", "after"), [((), (HEAD, NORMS)), ((HEAD, NORMS), ()), ((HEAD, NORMS), (NORMS, HEAD)), ((HEAD,), (HEAD,))]
)
def test_groups_may_change_and_every_moment_stays_with_its_parameter(name, before, after):
    first = trained(*before, name=name)
    second = resumed(*first, *after, name=name)
    assert_equal(moments(*first), moments(*second), dict(first[0].named_parameters()))
    plain = of_rules(tiny_model("llama"), *after, name=name, lr=0.01)
    for ours, theirs in zip(second[1].param_groups, plain.param_groups, strict=True):
        assert {**ours, "params": 0} == {**theirs, "params": 0}, "the config's groups, not the checkpoint's"


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_without_names_resumes_to_the_bit(name):
    model, optimizer = trained(name=name, steps=3)
    again, present = resumed(model, optimizer, forget_names=True, name=name)
    assert_equal(moments(model, optimizer), moments(again, present), dict(model.named_parameters()))
    assert losses(model, optimizer, 3) == losses(again, present, 3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_without_names_goes_on_with_entries_too(name):
    model, optimizer = trained(name=name)
    again, present = resumed(model, optimizer, NORMS, BLOCK, forget_names=True, name=name)
    kept = [name for name, p in again.named_parameters() if p.requires_grad]
    assert 0 < len(kept) < len(list(model.parameters()))
    assert moments(again, present).keys() == set(kept)
    assert_equal(moments(model, optimizer), moments(again, present), kept)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_newly_frozen_drops_its_moments_and_what_is_newly_trained_begins_with_none(name):
    first = trained(BLOCK, name=name)
    model, optimizer = resumed(*first, FROZEN, name=name)
    begun = {name for name in dict(model.named_parameters()) if "layers.0" in name}
    stayed = set(moments(*first)) - {"lm_head.weight", "model.embed_tokens.weight"}
    assert set(moments(model, optimizer)) == stayed
    assert_equal(moments(*first), moments(model, optimizer), stayed)
    losses(model, optimizer, 1)
    assert set(moments(model, optimizer)) == stayed | begun


@pytest.mark.parametrize("kernel", [{"fused": True}, {"foreach": True}, {"foreach": False}], ids=str)
def test_a_newly_trained_tensor_counts_its_own_steps(kernel):
    """Its first update is that of a new AdamW: without its own count, the bias correction would be that of step 4."""
    tensor, other = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    alone = torch.nn.Parameter(tensor.detach().clone())
    optimizer = torch.optim.AdamW([tensor, other], lr=0.1, **kernel)
    reference = torch.optim.AdamW([alone], lr=0.1, **kernel)
    for step in range(5):
        other.grad = torch.full((3,), 0.5 + step)
        if step >= 3:
            tensor.grad, alone.grad = torch.full((3,), 0.25), torch.full((3,), 0.25)
            reference.step()
        optimizer.step()
    assert torch.equal(tensor, alone) and optimizer.state[tensor]["step"] == 2 and optimizer.state[other]["step"] == 5


def test_moments_of_another_algorithm_are_not_taken():
    first = trained(name="muon")
    _, present = resumed(*first, name="adamw")
    assert all("momentum_buffer" not in state for state in present.state.values())
    assert len(present.state) == sum(len(g["params"]) for g in first[1].param_groups if g["algorithm"] == "adamw")


def test_a_checkpoint_without_names_and_of_other_groups_is_refused():
    model, optimizer = trained()
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        del group["param_names"]
        group["name"] = f"old {group['name']}"
    saved["param_groups"] = saved["param_groups"][1:]
    former = former_groups(model, [])
    with refuses(CheckpointError, "old embeddings (2)", "hidden (14)", "name=..."):
        by_present_numbers(saved, optimizer.state_dict(), moment_owners(model, optimizer), former)


def test_an_optimizer_without_any_names_is_restored_in_its_order():
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter])
    parameter.grad = torch.ones(2)
    optimizer.step()
    found = by_present_numbers(optimizer.state_dict(), optimizer.state_dict(), {0: "weight"}, {})
    assert found["state"].keys() == {0}
